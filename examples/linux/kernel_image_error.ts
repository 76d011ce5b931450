/** A file that is no kernel, or one that cannot be unpacked here. */
export class KernelImageError extends Error {
  override name = "KernelImageError";
}
