import { Alias } from "../../ffi/host/alias.ts";
import type { Mappable } from "../../ffi/files/mappable.ts";
import { revokeView } from "../../ffi/os/view.ts";
import { MappingError } from "../core/errors.ts";
import type { MemoryRange } from "../core/memory_range.ts";

/** What backs a part of a range, in bytes. */
export interface ViewPart {
  /** The first GPA. */
  readonly start: number;
  /** One past the last. */
  readonly end: number;
  /** The file, `null` for private memory. */
  readonly mappable: Mappable | null;
  /** Where in the file it begins; of no meaning for private memory. */
  readonly fileOffset: number;
  /** Whether stores reach guest memory. */
  readonly writable: boolean;
}

/**
 * A view of a range in which stores to read-only memory stay private to it. `original` makes a view of the memory
 * itself.
 *
 * @throws {MappingError} If the range has both files and private memory.
 */
export function readOnlyView(
  parts: readonly ViewPart[],
  range: MemoryRange,
  original: () => ArrayBuffer,
): { buffer: ArrayBuffer; alias: Alias | undefined } {
  if (parts.every(({ mappable, writable }) => mappable === null && !writable)) {
    // Private memory that nobody can write: a copy of it is as good as the original.
    const view = original();
    const buffer = view.slice(0);
    revokeView(view);
    return { buffer, alias: undefined };
  }
  const files = parts.map((part) => {
    const { mappable } = part;
    if (mappable !== null) return { ...part, mappable };
    throw new MappingError(
      "A lock over files that are read-only cannot cover private memory too, lock them apart",
      range,
    );
  });
  const alias = new Alias(files);
  return { buffer: alias.buffer, alias };
}
