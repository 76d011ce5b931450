/**
 * Which pages this package itself has written: by the owner, by its Workers, by client processes.
 *
 * ```
 *   pages    one byte each, 1 where written            16 MiB for 64 GiB, of which only what is used takes memory
 *   blocks   one byte for 4,096 of them, 1 where       4 KiB for 64 GiB: what a look at nothing costs
 *            there may be some
 * ```
 *
 * Bytes and not bits, so that threads need no atomic operations: nobody changes what another one has stored. A mark is made
 * before its write. That is early enough because nobody takes marks in between: the owner is one thread, and clients are
 * held off meanwhile.
 *
 * The bytes lie in a memfd, which other threads reach by address. Each other process has one of its own, by descriptor,
 * whose marks are taken over: what a process does to its own is nothing to the others.
 *
 * @module
 */

import { FileMapping } from "../../ffi/os/address_space.ts";
import { PROT_READ, PROT_WRITE } from "../../ffi/os/mman.ts";
import { hostView } from "../../ffi/os/view.ts";
import { Mappable } from "../../ffi/files/mappable.ts";
import { PAGE_SIZE } from "../core/memory_range.ts";
import { firstWordSet } from "../core/page_runs.ts";

/** Pages per block: their bytes are one page themselves. */
const BLOCK = 4096;
const PAGE_SHIFT = 12;

/** The marks of a part of guest memory whose offsets are small integers. */
export class WindowMarks {
  /** A byte for each page of the window, to be set to 1 where the page is written; for which pages, `mark` says. */
  readonly pages: Uint8Array;
  /** The first page whose byte may be set by others without more ado, until marks are taken. */
  openFrom = 0;
  /** One past the last of them; 0 for none. What lies between the writes of a window is looked through as well. */
  openEnd = 0;
  readonly #blocks: Uint8Array;
  /** How many pages of the first block lie before the window. */
  readonly #lead: number;

  /** The window begins with the page `first` and has `count` pages. */
  constructor(pages: Uint8Array, blocks: Uint8Array, first: number, count: number) {
    this.pages = pages.subarray(first, first + count);
    this.#blocks = blocks.subarray(Math.floor(first / BLOCK), Math.ceil((first + count) / BLOCK));
    this.#lead = first % BLOCK;
  }

  /** Marks the pages of the bytes `[from, to)`, offsets into the window. */
  mark(from: number, to: number): void {
    if (to <= from) return;
    const first = from >>> PAGE_SHIFT;
    const end = ((to - 1) >>> PAGE_SHIFT) + 1;
    if (first < this.openFrom || end > this.openEnd) this.#open(first, end);
    for (let page = first; page < end; page++) this.pages[page] = 1;
  }

  /** Has marks looked for in the blocks of `[first, end)` as well. */
  #open(first: number, end: number): void {
    const lead = this.#lead;
    const from = this.openEnd === 0 ? first : Math.min(first, this.openFrom);
    const firstBlock = Math.floor((lead + from) / BLOCK);
    const endBlock = Math.ceil((lead + Math.max(end, this.openEnd)) / BLOCK);
    this.#blocks.fill(1, firstBlock, endBlock);
    this.openFrom = Math.max(0, firstBlock * BLOCK - lead);
    this.openEnd = Math.min(this.pages.length, endBlock * BLOCK - lead);
  }
}

/** What the marks are in, where that is the object's own to give up. */
interface Own {
  readonly file: Mappable;
  readonly mapping: FileMapping;
}

/** The marks of all guest memory. */
export class WriteMarks implements Disposable {
  /** One past the last GPA that can be marked, in bytes. */
  readonly length: number;
  /** The host address of the marks, for other threads of this process. */
  readonly address: number;
  readonly #pages: Uint8Array<ArrayBuffer>;
  /** The same, four at a time. */
  readonly #words: Uint32Array<ArrayBuffer>;
  readonly #blocks: Uint8Array<ArrayBuffer>;
  readonly #own: Own | null;

  private constructor(length: number, address: number, bytes: ArrayBuffer, own: Own | null) {
    this.length = length;
    this.address = address;
    this.#own = own;
    const pages = pagesOf(length);
    this.#pages = new Uint8Array(bytes, 0, pages);
    this.#words = wordsOf(this.#pages);
    this.#blocks = new Uint8Array(bytes, pages, roundUp(pages / BLOCK, 4));
  }

  /**
   * Makes marks for guest memory of `length` bytes.
   *
   * @throws {OsError} If there is no address space or no descriptor left for them.
   */
  static create(length: number): WriteMarks {
    using undo = new DisposableStack();
    const file = undo.use(Mappable.memfd("write-marks", sizeOf(length)));
    const mapping = undo.use(new FileMapping(file.fd, 0, file.size, PROT_READ | PROT_WRITE));
    const marks = new WriteMarks(length, mapping.address, mapping.bytes, { file, mapping });
    undo.move();
    return marks;
  }

  /** The marks of guest memory of `length` bytes that another thread of this process has at `address`, and keeps there. */
  static at(address: number, length: number): WriteMarks {
    return new WriteMarks(length, address, hostView(address, sizeOf(length)), null);
  }

  /**
   * The marks of guest memory of `length` bytes that another process has in the file `fd`.
   *
   * @throws {OsError} If it cannot be mapped.
   */
  static inFile(fd: number, length: number): WriteMarks {
    using undo = new DisposableStack();
    const file = undo.use(Mappable.fromFd(fd));
    const mapping = undo.use(new FileMapping(file.fd, 0, sizeOf(length), PROT_READ | PROT_WRITE));
    const marks = new WriteMarks(length, mapping.address, mapping.bytes, { file, mapping });
    undo.move();
    return marks;
  }

  /** The file the marks are in, for other processes; -1 for those of another thread. */
  get fd(): number {
    return this.#own?.file.fd ?? -1;
  }

  /** Marks the pages of the bytes `[start, end)`. */
  mark(start: number, end: number): void {
    if (end <= start) return;
    const first = Math.floor(start / PAGE_SIZE);
    const last = Math.ceil(end / PAGE_SIZE);
    this.#pages.fill(1, first, last);
    this.#blocks.fill(1, Math.floor(first / BLOCK), Math.ceil(last / BLOCK));
  }

  /** The marks of `[start, end)`, which are multiples of the page size at most 2^30 bytes apart. */
  window(start: number, end: number): WindowMarks {
    return new WindowMarks(this.#pages, this.#blocks, start / PAGE_SIZE, (end - start) / PAGE_SIZE);
  }

  /** Tells `visit` the first GPA and the end of each run of marked pages, in order, and clears the marks. */
  take(visit: (start: number, end: number) => void): void {
    const blocks = this.#blocks;
    const words = wordsOf(blocks);
    const last = words.length;
    for (let word = firstWordSet(words, 0, last); word < last; word = firstWordSet(words, word + 1, last)) {
      for (let block = 4 * word; block < 4 * word + 4; block++) {
        if (blocks[block] === 0) continue;
        blocks[block] = 0;
        this.#takeBlock(block * BLOCK, visit);
      }
    }
  }

  /** Forgets all marks. */
  clear(): void {
    this.take(() => {});
  }

  /** Unmaps what is this object's own. */
  [Symbol.dispose](): void {
    this.#own?.mapping[Symbol.dispose]();
    this.#own?.file[Symbol.dispose]();
  }

  #takeBlock(first: number, visit: (start: number, end: number) => void): void {
    const pages = this.#pages;
    const words = this.#words;
    const last = (first + BLOCK) / 4;
    let start = first;
    let end = first;
    for (let word = firstWordSet(words, first / 4, last); word < last; word = firstWordSet(words, word + 1, last)) {
      for (let page = 4 * word; page < 4 * word + 4; page++) {
        if (pages[page] === 0) continue;
        if (page !== end) {
          if (start < end) visit(start * PAGE_SIZE, end * PAGE_SIZE);
          start = page;
        }
        end = page + 1;
      }
      words[word] = 0;
    }
    if (start < end) visit(start * PAGE_SIZE, end * PAGE_SIZE);
  }
}

/** Bytes, four at a time. */
function wordsOf({ buffer, byteOffset, byteLength }: Uint8Array<ArrayBuffer>): Uint32Array<ArrayBuffer> {
  return new Uint32Array(buffer, byteOffset, byteLength / 4);
}

/** How many pages have a mark: whole blocks. */
function pagesOf(length: number): number {
  return roundUp(length / PAGE_SIZE, BLOCK);
}

function sizeOf(length: number): number {
  const pages = pagesOf(length);
  return pages + roundUp(pages / BLOCK, PAGE_SIZE);
}

function roundUp(value: number, multiple: number): number {
  return Math.ceil(value / multiple) * multiple;
}
