import { CODE, FAN_OUT, KINDS, rootLevel, ROW, ROW_SHIFT, spanOf } from "./page_codes.ts";
import { fillWords, type PageSink } from "./page_sinks.ts";
import { type MapRegion, RegionRows } from "./region_rows.ts";

/** A file as the map knows it. */
export interface MapFile {
  /** The owner's descriptor. */
  readonly fd: number;
  /** Says that others are about to get it; throws where they cannot, since memory of it is locked. */
  handOut?(): number;
}

/** A file as those know it who keep account of files. */
export interface FileAccount {
  /** Its number, which no other file has had. */
  readonly number: number;
}

/** Who keeps account of the files that rows refer to. */
export interface FileRows<A extends FileAccount> {
  /** There is one row more of `file`. */
  added(file: MapFile): A;
  /** There is one row less of it. */
  removed(file: A): void;
}

/** For who keeps none. */
export const NO_ACCOUNTS: FileRows<FileAccount> = { added: () => ({ number: 0 }), removed() {} };

/** What is mapped over a range, as the owner knows it. */
export interface Paint {
  /** Tells kinds, files and offsets apart: the same object, and the same region, for the same row. */
  readonly key: object;
  /** The file that holds the memory; `null` for private and copy-on-write memory. */
  readonly file: MapFile | null;
  /** What it is. */
  readonly kind: (typeof KINDS)[number];
  /** Who shows there. */
  readonly region: MapRegion;
  /** File offset minus GPA, in bytes. */
  readonly delta: number;
  /** Bits of `CODE`. */
  readonly access: number;
}

/** A row that says what memory is. */
class MemoryRow<A> {
  /** How many entries refer to it. */
  references = 0;

  constructor(
    readonly number: number,
    readonly key: object,
    readonly region: MapRegion,
    readonly account: A | null,
  ) {}
}

const FIRST_NODES = 16;
const FIRST_ROWS = 64;

/**
 * The owner's side of the shared memory map. Every edit costs what the same edit of page tables would.
 *
 * The owner works on a copy of its own, and writes what changes to the memory that clients read (`sinks`): what they
 * make of that is nothing to it. Nodes and rows are used again as soon as nothing refers to them, so edits are made only
 * while no client reads.
 */
export class PageWriter<A extends FileAccount = FileAccount> {
  readonly #sinks: PageSink[] = [];
  readonly #level: number;
  readonly #files: FileRows<A>;
  #words = new Int32Array(FIRST_NODES * FAN_OUT);
  #numbers = new Float64Array(FIRST_ROWS * ROW.length);
  /** How many entries of each node are not 0. */
  #used: number[] = [0];
  #freeNodes: number[] = [];
  /** Free nodes all of whose entries are 0. */
  #zeroNodes: number[] = [];
  /** By its number each row that says what memory is; `null` for those of regions, and for free ones. */
  #rows: (MemoryRow<A> | null)[] = [null];
  #rowOf = new Map<object, MemoryRow<A>>();
  #regions: RegionRows;
  #freeRows: number[] = [];
  #serial = 0;

  /** For `length` bytes of guest memory. */
  constructor(length: number, files: FileRows<A>) {
    this.#level = rootLevel(length);
    this.#files = files;
    this.#regions = this.#newRegionRows();
  }

  #newRegionRows(): RegionRows {
    return new RegionRows({
      take: () => this.#takeRow(),
      write: (row, numbers) => {
        this.#numbers.set(numbers, row * ROW.length);
        for (const sink of this.#sinks) sink.writeRow(row * ROW.length, this.#numbers);
      },
      give: (row) => void this.#freeRows.push(row),
    });
  }

  /** Whether there has never been more at a time than so many words of nodes and numbers of rows have room for. */
  fits(words: number, numbers: number): boolean {
    return this.#words.length <= words && this.#numbers.length <= numbers;
  }

  /** Forgets everything, and the room it took. Sinks show nothing until it is painted anew. */
  clear(): void {
    for (const account of [...this.accounts()]) this.#files.removed(account);
    this.#words = new Int32Array(FIRST_NODES * FAN_OUT);
    this.#numbers = new Float64Array(FIRST_ROWS * ROW.length);
    this.#used = [0];
    this.#freeNodes = [];
    this.#zeroNodes = [];
    this.#rows = [null];
    this.#rowOf = new Map();
    this.#regions = this.#newRegionRows();
    this.#freeRows = [];
    for (const sink of this.#sinks) {
      sink.grow(this.#words.length, this.#numbers.length);
      sink.copy(this.#words, this.#numbers);
    }
  }

  /** Writes everything to `sink`, and from now on what changes. */
  addSink(sink: PageSink): void {
    sink.grow(this.#words.length, this.#numbers.length);
    sink.copy(this.#words, this.#numbers);
    this.#sinks.push(sink);
  }

  /** Writes no more to `sink`. */
  removeSink(sink: PageSink): void {
    const at = this.#sinks.indexOf(sink);
    if (at >= 0) this.#sinks.splice(at, 1);
  }

  /** The accounts of all files that rows refer to; one of several rows comes as often. */
  *accounts(): Iterable<A> {
    for (const row of this.#rows) if (row !== null && row.account !== null) yield row.account;
  }

  /** How many nodes are in use, for tests. */
  get nodeCount(): number {
    return this.#used.length - this.#freeNodes.length - this.#zeroNodes.length;
  }

  /** How many rows of memory are in use, for tests. */
  get rowCount(): number {
    return this.#rows.length - 1 - this.#freeRows.length - this.#regions.count;
  }

  /** How many rows are in use for regions, for tests. */
  get regionRowCount(): number {
    return this.#regions.count;
  }

  /** Says what is mapped over `[start, end)` from now on; `null` for nothing. */
  paint(start: number, end: number, paint: Paint | null): void {
    const code = paint === null ? 0 : this.#rowFor(paint) << ROW_SHIFT | paint.access | CODE.readable;
    // Held while it is painted: the last entry that refers to the row may be one that is painted over.
    this.#refer(code, 1);
    this.#paint(0, this.#level, 0, start, end, code);
    this.#refer(code, -1);
  }

  #paint(node: number, level: number, base: number, start: number, end: number, code: number): void {
    const span = spanOf(level);
    const first = Math.max(0, Math.floor((start - base) / span));
    const last = Math.min(FAN_OUT, Math.ceil((end - base) / span));
    if (level === 0) return this.#paintPages(node, node * FAN_OUT + first, node * FAN_OUT + last, code);
    for (let i = first; i < last; i++) {
      const from = base + i * span;
      const at = node * FAN_OUT + i;
      const entry = this.#entry(at);
      if (start <= from && from + span <= end) {
        if (entry !== code) this.#set(node, at, entry, code);
        continue;
      }
      if (entry === code) continue;
      const child = entry < 0 ? ~entry : this.#divide(node, at, entry);
      this.#paint(child, level - 1, from, start, end, code);
      if (this.#used[child] === 0) {
        this.#zeroNodes.push(child);
        this.#write(at, 0);
        this.#count(node, -1);
      }
    }
  }

  /** Puts a code where codes of pages were: a run of the same ones at a time, since there are few. */
  #paintPages(node: number, start: number, end: number, code: number): void {
    const words = this.#words;
    for (let at = start; at < end;) {
      const old = words[at] ?? 0;
      let next = at + 1;
      while (next < end && words[next] === old) next++;
      if (old !== code) {
        const count = next - at;
        this.#refer(old, -count);
        this.#refer(code, count);
        this.#fill(code, at, next);
        this.#count(node, (code === 0 ? 0 : count) - (old === 0 ? 0 : count));
      }
      at = next;
    }
  }

  /** Puts a code where a code or a node was. */
  #set(node: number, at: number, old: number, code: number): void {
    if (old < 0) this.#free(~old);
    else this.#refer(old, -1);
    this.#refer(code, 1);
    this.#write(at, code);
    this.#count(node, (code === 0 ? 0 : 1) - (old === 0 ? 0 : 1));
  }

  /** Puts a node where a code was, which holds throughout the node for now. */
  #divide(node: number, at: number, code: number): number {
    const zeros = code === 0 ? this.#zeroNodes.pop() : undefined;
    const child = zeros ?? this.#newNode();
    if (zeros === undefined) this.#fill(code, child * FAN_OUT, (child + 1) * FAN_OUT);
    this.#used[child] = code === 0 ? 0 : FAN_OUT;
    this.#refer(code, FAN_OUT - 1);
    this.#write(at, ~child);
    if (code === 0) this.#count(node, 1);
    return child;
  }

  /** Gives back a node and all below it. */
  #free(node: number): void {
    for (let at = node * FAN_OUT; at < (node + 1) * FAN_OUT; at++) {
      const entry = this.#entry(at);
      if (entry < 0) this.#free(~entry);
      else this.#refer(entry, -1);
    }
    this.#used[node] = 0;
    this.#freeNodes.push(node);
  }

  #newNode(): number {
    const free = this.#freeNodes.pop() ?? this.#zeroNodes.pop();
    if (free !== undefined) return free;
    const node = this.#used.length;
    this.#used.push(0);
    if ((node + 1) * FAN_OUT > this.#words.length) {
      const old = this.#words;
      this.#words = new Int32Array(old.length * 2);
      this.#words.set(old);
      this.#growSinks();
    }
    return node;
  }

  #count(node: number, by: number): void {
    this.#used[node] = (this.#used[node] ?? 0) + by;
  }

  #write(at: number, entry: number): void {
    this.#words[at] = entry;
    for (const sink of this.#sinks) sink.write(at, entry);
  }

  #fill(code: number, start: number, end: number): void {
    fillWords(this.#words, code, start, end);
    for (let i = 0; i < this.#sinks.length; i++) this.#sinks[i]!.fill(code, start, end);
  }

  #growSinks(): void {
    for (const sink of this.#sinks) sink.grow(this.#words.length, this.#numbers.length);
  }

  #entry(at: number): number {
    return this.#words[at] ?? 0;
  }

  #rowFor({ key, file, delta, kind, region }: Paint): number {
    const known = this.#rowOf.get(key);
    if (known !== undefined && known.region === region) return known.number;
    const number = this.#takeRow();
    const account = file === null ? null : this.#files.added(file);
    const row = this.#rows[number] = new MemoryRow(number, key, region, account);
    this.#rowOf.set(key, row);
    const at = number * ROW.length;
    const shows = this.#regions.refer(region); // Which may make the numbers others.
    const numbers = this.#numbers;
    numbers[at + ROW.fd] = file === null ? -1 : file.fd;
    numbers[at + ROW.delta] = delta;
    numbers[at + ROW.serial] = ++this.#serial;
    numbers[at + ROW.file] = account === null ? 0 : account.number;
    numbers[at + ROW.region] = shows;
    numbers[at + ROW.kind] = KINDS.indexOf(kind);
    for (const sink of this.#sinks) sink.writeRow(at, numbers);
    return number;
  }

  /** The number of a row to be written to. */
  #takeRow(): number {
    const free = this.#freeRows.pop();
    if (free !== undefined) return free;
    const row = this.#rows.length;
    this.#rows.push(null);
    if ((row + 1) * ROW.length > this.#numbers.length) {
      const old = this.#numbers;
      this.#numbers = new Float64Array(old.length * 2);
      this.#numbers.set(old);
      this.#growSinks();
    }
    return row;
  }

  #refer(code: number, by: number): void {
    const row = this.#rows[code >> ROW_SHIFT];
    if (row === null || row === undefined) return;
    row.references += by;
    if (row.references === 0) this.#freeRow(row);
  }

  #freeRow(row: MemoryRow<A>): void {
    const { number, key, region, account } = row;
    // Another region may show the same by now, in a row of its own.
    if (this.#rowOf.get(key) === row) this.#rowOf.delete(key);
    this.#rows[number] = null;
    this.#freeRows.push(number);
    if (account !== null) this.#files.removed(account);
    this.#regions.release(region);
  }
}
