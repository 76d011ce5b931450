import { DiskFile } from "../../ffi/files/disk_file.ts";
import { Errno, OsError } from "../../ffi/os/os_error.ts";
import { hex } from "../core/hex.ts";
import { SnapshotError } from "../core/snapshot_error.ts";
import { decodeIndex, IndexFault, isSameLayout, memoryLength, type SnapshotIndex } from "../core/snapshot_index.ts";
import { checksum, INDEX_FILE, INDEX_LIMIT, MEMORY_FILE } from "./format.ts";

/** One snapshot of a chain, with its memory open. */
export interface SnapshotLayer {
  /** Its directory. */
  readonly directory: string;
  /** What it says of itself. */
  readonly index: SnapshotIndex;
  /** Its memory. */
  readonly memory: DiskFile;
}

/**
 * Opens what is in a directory.
 *
 * @throws {SnapshotError} If it is no snapshot, or not whole.
 */
export function openLayer(directory: string): SnapshotLayer {
  const index = readIndex(directory, `${directory}/${INDEX_FILE}`);
  const path = `${directory}/${MEMORY_FILE}`;
  const memory = openFile(path, directory);
  try {
    const expected = memoryLength(index.layout);
    const { size } = memory;
    if (size === expected) return { directory, index, memory };
    throw new SnapshotError("truncated", path, `${path} has ${hex(size)} bytes, and should have ${hex(expected)}`);
  } catch (error) {
    memory[Symbol.dispose]();
    throw error;
  }
}

function readIndex(directory: string, path: string): SnapshotIndex {
  using file = openFile(path, directory);
  try {
    const { size } = file;
    if (size > INDEX_LIMIT) {
      throw new IndexFault("corrupt", `it has ${hex(size)} bytes, and no index has more than ${hex(INDEX_LIMIT)}`);
    }
    return decodeIndex(file.read(size, 0), checksum);
  } catch (cause) {
    if (!(cause instanceof IndexFault)) throw cause;
    throw new SnapshotError(cause.kind, path, `${path} is not the index of a snapshot: ${cause.message}`, { cause });
  }
}

function openFile(path: string, directory: string): DiskFile {
  try {
    return DiskFile.open(path);
  } catch (cause) {
    if (!(cause instanceof OsError) || (cause.errno !== Errno.ENOENT && cause.errno !== Errno.ENOTDIR)) throw cause;
    throw new SnapshotError("missing", directory, `There is no snapshot in ${directory}: ${path} is missing`, {
      cause,
    });
  }
}

/**
 * The first of `opened` with what it is a difference to, the full snapshot first.
 *
 * @throws {SnapshotError} If one is missing, or of another layout.
 */
export function chainOf(opened: readonly SnapshotLayer[]): SnapshotLayer[] {
  const [last] = opened;
  if (last === undefined) throw new Error("There is at least the snapshot itself");
  const chain = [last];
  for (let { index, directory } = last; index.parent !== null;) {
    const { parent } = index;
    const found = opened.find((layer) => layer.index.id === parent);
    if (found === undefined || chain.includes(found)) {
      throw new SnapshotError(
        "parent",
        directory,
        `${directory} is the difference to snapshot ${parent}, name its directory in parents`,
      );
    }
    if (!isSameLayout(found.index.layout, index.layout)) {
      throw new SnapshotError("layout", directory, `${directory} has another layout than ${found.directory}`);
    }
    chain.unshift(found);
    ({ index, directory } = found);
  }
  return chain;
}

/**
 * The bytes of a part of a snapshot's memory.
 *
 * @throws {SnapshotError} If the file is shorter by now.
 */
export function readMemory({ memory }: SnapshotLayer, start: number, end: number): Uint8Array<ArrayBuffer> {
  try {
    return memory.read(end - start, start);
  } catch (cause) {
    if (!(cause instanceof OsError) || memory.size >= end) throw cause;
    throw new SnapshotError("truncated", memory.path, `${memory.path} ends before ${hex(end)}`, { cause });
  }
}
