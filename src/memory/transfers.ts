import { type Progress, readToMemory, writeFromMemory } from "../../ffi/files/file_transfer.ts";
import { fileOf, Mappable } from "../../ffi/files/mappable.ts";
import { MembackingError } from "../core/errors.ts";
import { hex } from "../core/hex.ts";
import { checkNumber } from "../core/memory_range.ts";
import { type AccessMap, partsOf } from "./access_map.ts";

/** A transfer between a file and guest memory ended early. `cause` says why. */
export class FileTransferError extends MembackingError {
  /** The class name, which is also what a stack trace shows. */
  override name = "FileTransferError";
  /** Where in guest memory the transfer began, a GPA. */
  readonly gpa: number;
  /** Where in the file it began, in bytes. */
  readonly fileOffset: number;
  /** How many bytes it was to move. */
  readonly length: number;
  /** How many bytes have moved, from the beginning on. */
  readonly done: number;

  /** Builds the error. */
  constructor(gpa: number, fileOffset: number, length: number, done: number, cause: unknown) {
    const why = cause instanceof Error ? `: ${cause.message}` : "";
    super(
      `${hex(done)} of ${hex(length)} bytes moved between guest memory at ${hex(gpa)} and file offset ` +
        `${hex(fileOffset)}${why}`,
      { cause },
    );
    this.gpa = gpa;
    this.fileOffset = fileOffset;
    this.length = length;
    this.done = done;
  }
}

/** Moves bytes between a file and guest memory, `"in"` to guest memory or `"out"` to the file. */
export function transfer(
  map: AccessMap,
  direction: "in" | "out",
  mappable: Mappable,
  fileOffset: number,
  gpa: number,
  length: number,
): void {
  if (!(mappable instanceof Mappable)) {
    throw new TypeError("The file must be a Mappable; Mappable.fromFd makes one of a file that is open already");
  }
  checkNumber(fileOffset, "File offset");
  checkNumber(length, "Length");
  const parts = partsOf(map, gpa, length, direction === "in");
  const file = fileOf(mappable);
  file.checkBounds(fileOffset, length);
  if (direction === "out") file.checkNotFrozen();
  if (direction === "out" && !file.writable) {
    throw new MembackingError(`${file.label} is not open for writing, open it with write: true`);
  }
  const isCopied = file.bytes !== null || !map.hasAddresses;
  const act = isCopied ? copyVia(map, direction) : direction === "in" ? readToMemory : writeFromMemory;
  const progress: Progress = { done: 0 };
  try {
    for (const { start, end } of parts) {
      act(mappable, fileOffset + start - gpa, map.base + start, end - start, progress);
    }
  } catch (cause) {
    throw new FileTransferError(gpa, fileOffset, length, progress.done, cause);
  }
}

/** A transfer where there is no kernel to make it: with stand-ins, in tests. */
function copyVia(map: AccessMap, direction: "in" | "out"): typeof readToMemory {
  return (mappable, fileOffset, address, length, progress) => {
    const { buffer, offset } = map.bytesAt(address - map.base);
    const bytes = new Uint8Array(buffer, offset, length);
    if (direction === "in") mappable.read(fileOffset, bytes);
    else mappable.write(fileOffset, bytes);
    progress.done += length;
  };
}
