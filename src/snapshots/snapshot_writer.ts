import {
  absolutePath,
  DiskFile,
  exists,
  makeDirectory,
  publishDirectory,
  removeDirectory,
} from "../../ffi/files/disk_file.ts";
import { Errno, OsError } from "../../ffi/os/os_error.ts";
import { LimitError } from "../core/errors.ts";
import { SnapshotError } from "../core/snapshot_error.ts";
import { encodeIndex, memoryLength, type SnapshotIndex, type StoredSpan } from "../core/snapshot_index.ts";
import type { Span } from "../core/span.ts";
import { checksum, CHUNK, INDEX_FILE, INDEX_LIMIT, MEMORY_FILE } from "./format.ts";
import { runsOf } from "./pages.ts";

/** How much of the memory file the disk is given to write at a time, in bytes. */
const BATCH = 2 ** 24;

/** What the caller knows of a snapshot before its memory is written. */
export type SnapshotHead = Omit<SnapshotIndex, "id" | "stored" | "zeros">;

/**
 * Throws unless `directory` can be a path.
 *
 * @throws {TypeError} If it is no text, or empty.
 */
export function checkNewDirectory(directory: unknown): asserts directory is string {
  if (typeof directory === "string" && directory !== "") return;
  throw new TypeError("Memory is saved to the path of a new directory");
}

/**
 * Writes a snapshot aside, and gives it its name when it is whole: whoever looks finds all of it or nothing. Disposing
 * it before that takes away what was written.
 */
export class SnapshotWriter implements Disposable {
  /** Where the snapshot is to be, whatever the working directory is by then. */
  readonly directory: string;
  readonly #aside: string;
  readonly #head: SnapshotHead;
  readonly #id: string = crypto.randomUUID();
  readonly #memory: DiskFile;
  readonly #stored: StoredSpan[] = [];
  readonly #zeros: Span[] = [];
  #storedBytes = 0;
  /** Up to where the disk has begun with it. */
  #begun = 0;
  #published = false;

  /**
   * Begins a snapshot that is to be at `directory`.
   *
   * @throws {SnapshotError} If there is something at `directory`.
   * @throws {OsError} If the directory above cannot be written.
   */
  constructor(directory: string, head: SnapshotHead) {
    if (exists(directory)) throw new SnapshotError("exists", directory, `${directory} exists, name a new directory`);
    this.directory = absolutePath(directory);
    this.#head = head;
    this.#aside = `${this.directory.replace(/\/+$/, "")}.${this.#id}.partial`;
    makeDirectory(this.#aside);
    try {
      this.#memory = DiskFile.create(`${this.#aside}/${MEMORY_FILE}`);
    } catch (error) {
      this.#takeAway();
      throw error;
    }
    try {
      this.#memory.resize(memoryLength(head.layout));
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /** How many bytes of pages have been stored. */
  get storedBytes(): number {
    return this.#storedBytes;
  }

  /**
   * Stores pages that are at `address` in the host's memory, where `bytes` is a view of them, at `offset` of the memory
   * file. Pages of zeros take no room. Offsets ascend from call to call.
   */
  store(bytes: Uint8Array<ArrayBuffer>, address: number, offset: number): void {
    for (let at = 0; at < bytes.length; at += CHUNK) {
      const chunk = bytes.subarray(at, Math.min(at + CHUNK, bytes.length));
      for (const { start, end, isZero } of runsOf(new Int32Array(chunk.buffer, chunk.byteOffset, chunk.length / 4))) {
        const from = offset + at + start;
        const to = offset + at + end;
        if (isZero) {
          this.zero(from, to);
          continue;
        }
        this.#memory.writeFrom(address + at + start, end - start, from);
        this.#stored.push({ start: from, end: to, checksum: checksum(chunk.subarray(start, end)) });
        this.#storedBytes += end - start;
        if (to - this.#begun >= BATCH) this.#beginSync(to);
      }
    }
  }

  /** The disk writes while the next pages are read. */
  #beginSync(to: number): void {
    this.#memory.beginSync(this.#begun, to);
    this.#begun = to;
  }

  /** Says that a part of the memory file is zeros, which a difference has to know. */
  zero(start: number, end: number): void {
    if (this.#head.parent === null) return;
    const last = this.#zeros.at(-1);
    if (last?.end === start) this.#zeros[this.#zeros.length - 1] = { start: last.start, end };
    else this.#zeros.push({ start, end });
  }

  /**
   * Writes the index, waits for the disk, and gives the snapshot its name.
   *
   * @throws {SnapshotError} If something has appeared at its place meanwhile.
   * @throws {OsError} If the disk is full or fails.
   */
  publish(): void {
    const bytes = encodeIndex(
      { ...this.#head, id: this.#id, stored: this.#stored, zeros: this.#zeros },
      checksum,
    );
    if (bytes.length > INDEX_LIMIT) {
      throw new LimitError(
        "bytes of an index",
        INDEX_LIMIT,
        bytes.length,
        "put less state beside memory",
      );
    }
    this.#memory.sync();
    {
      using index = DiskFile.create(`${this.#aside}/${INDEX_FILE}`);
      index.write(bytes, 0);
      index.sync();
    }
    try {
      publishDirectory(this.#aside, this.directory);
    } catch (cause) {
      if (!(cause instanceof OsError) || cause.errno !== Errno.EEXIST) throw cause;
      throw new SnapshotError("exists", this.directory, `${this.directory} has appeared meanwhile`, { cause });
    }
    this.#published = true;
  }

  /** Closes its files, and takes away what has not been published. */
  [Symbol.dispose](): void {
    this.#memory[Symbol.dispose]();
    if (!this.#published) this.#takeAway();
  }

  #takeAway(): void {
    removeDirectory(this.#aside, [MEMORY_FILE, INDEX_FILE]);
  }
}
