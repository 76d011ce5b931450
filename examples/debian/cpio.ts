/**
 * An archive in the format of Linux's initial RAM file systems: cpio, "newc".
 *
 * Described in the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Each entry is a header of
 * hexadecimal digits, a name and its content, both padded to four bytes.
 *
 * @module
 */

const MAGIC = "070701";
const TRAILER = "TRAILER!!!";
const ALIGNMENT = 4;

/** What an entry is: the upper bits of its mode. */
const KIND = { directory: 0o040000, file: 0o100000, link: 0o120000, characterDevice: 0o020000 } as const;

/** Writes an archive piece by piece, as it may be far larger than what is to be held in memory. */
export class CpioWriter {
  readonly #write: (bytes: Uint8Array) => void;
  readonly #directories = new Set<string>([""]);
  #inode = 0;

  /** `write` takes the bytes of the archive, in order. */
  constructor(write: (bytes: Uint8Array) => void) {
    this.#write = write;
  }

  /** Adds a directory, and those above it, unless they are there. Paths have no leading slash, or one that is ignored. */
  directory(path: string): void {
    const name = path.replace(/^\/+|\/+$/g, "");
    if (this.#directories.has(name)) return;
    this.#directories.add(name);
    this.#above(name);
    this.#entry(name, KIND.directory | 0o755, new Uint8Array(0));
  }

  /** Adds a file. */
  file(path: string, content: Uint8Array | string, mode = 0o644): void {
    const name = path.replace(/^\/+/, "");
    this.#above(name);
    this.#entry(name, KIND.file | mode, typeof content === "string" ? new TextEncoder().encode(content) : content);
  }

  /** Adds a symbolic link. */
  link(path: string, target: string): void {
    const name = path.replace(/^\/+/, "");
    this.#above(name);
    this.#entry(name, KIND.link | 0o777, new TextEncoder().encode(target));
  }

  /** Adds a character device. */
  characterDevice(path: string, major: number, minor: number): void {
    const name = path.replace(/^\/+/, "");
    this.#above(name);
    this.#entry(name, KIND.characterDevice | 0o600, new Uint8Array(0), [major, minor]);
  }

  /** Ends the archive. Another one may follow in the same file. */
  end(): void {
    this.#entry(TRAILER, 0, new Uint8Array(0));
  }

  #above(name: string): void {
    const slash = name.lastIndexOf("/");
    if (slash > 0) this.directory(name.slice(0, slash));
  }

  #entry(name: string, mode: number, content: Uint8Array, device: readonly [number, number] = [0, 0]): void {
    const encoded = new TextEncoder().encode(name + "\0");
    const numbers = [
      ...[++this.#inode, mode, 0, 0, 1, 0, content.length],
      ...[0, 0, ...device],
      ...[encoded.length, 0],
    ];
    const header = MAGIC + numbers.map((value) => value.toString(16).padStart(8, "0")).join("");
    this.#padded(new Uint8Array([...new TextEncoder().encode(header), ...encoded]));
    this.#padded(content);
  }

  #padded(bytes: Uint8Array): void {
    this.#write(bytes);
    const rest = bytes.length % ALIGNMENT;
    if (rest !== 0) this.#write(new Uint8Array(ALIGNMENT - rest));
  }
}
