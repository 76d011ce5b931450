import { ROW } from "./page_codes.ts";
import { growable } from "./shared_words.ts";

/** Memory that clients read the memory map from: nodes and rows as `page_codes.ts` describes them. */
export interface PageSink {
  /** Sees to it that there is room for so many words of nodes and numbers of rows. */
  grow(words: number, numbers: number): void;
  copy(words: Int32Array, numbers: Float64Array): void;
  write(at: number, entry: number): void;
  fill(entry: number, start: number, end: number): void;
  /** Writes one row, which begins at `at` in `numbers`. */
  writeRow(at: number, numbers: Float64Array): void;
}

/** From how many words on the engine's own call takes less than a loop. */
const MANY = 64;

/** As `words.fill`. What is beyond the end is left out. */
export function fillWords(words: Int32Array, entry: number, start: number, end: number): void {
  if (end - start >= MANY) words.fill(entry, start, end);
  else for (let at = start; at < end; at++) words[at] = entry;
}

/** A sink whose memory is one array each. */
abstract class ArraySink implements PageSink {
  protected words: Int32Array = new Int32Array(0);
  protected numbers: Float64Array = new Float64Array(0);

  abstract grow(words: number, numbers: number): void;

  copy(words: Int32Array, numbers: Float64Array): void {
    this.words.set(words);
    this.numbers.set(numbers);
  }

  write(at: number, entry: number): void {
    this.words[at] = entry;
  }

  fill(entry: number, start: number, end: number): void {
    fillWords(this.words, entry, start, end);
  }

  writeRow(at: number, numbers: Float64Array): void {
    for (let i = at; i < at + ROW.length; i++) this.numbers[i] = numbers[i] ?? 0;
  }
}

/** For clients in other threads: memory that grows. */
export class ThreadSink extends ArraySink {
  /** The nodes; node 0 is the root. */
  readonly nodes: SharedArrayBuffer = growable(4096);
  /** The rows. */
  readonly rows: SharedArrayBuffer = growable(4096);

  grow(words: number, numbers: number): void {
    enlarge(this.nodes, words * Int32Array.BYTES_PER_ELEMENT);
    enlarge(this.rows, numbers * Float64Array.BYTES_PER_ELEMENT);
    this.words = new Int32Array(this.nodes, 0, words);
    this.numbers = new Float64Array(this.rows, 0, numbers);
  }
}

/** A client may have let it grow as well. */
function enlarge(buffer: SharedArrayBuffer, bytes: number): void {
  if (buffer.byteLength < bytes) buffer.grow(bytes);
}

/** For clients in other processes: memory of a fixed size, in one file. What does not fit is left out. */
export class FixedSink extends ArraySink {
  readonly #overflow: () => void;
  #full = false;

  /** `overflow` is told once if there is not enough room. */
  constructor(words: Int32Array, numbers: Float64Array, overflow: () => void) {
    super();
    this.words = words;
    this.numbers = numbers;
    this.#overflow = overflow;
  }

  grow(words: number, numbers: number): void {
    if (this.#full || (words <= this.words.length && numbers <= this.numbers.length)) return;
    this.#full = true;
    this.#overflow();
  }

  override copy(words: Int32Array, numbers: Float64Array): void {
    super.copy(words.subarray(0, this.words.length), numbers.subarray(0, this.numbers.length));
  }
}
