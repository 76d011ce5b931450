import { isAlive, type ThreadIdentity } from "../../ffi/os/thread.ts";
import { GATE, LINE } from "./shared_words.ts";

/** A client as the gate sees it. */
export interface Reader {
  /** The words of the client: `LINE`. */
  readonly line: Int32Array;
  /** The thread it runs on. */
  readonly thread: ThreadIdentity;
  /** Whether the thread has been seen to be gone; the client reads no more. */
  gone: boolean;
}

/** How often the flag of a reader is looked at before the owner sleeps on it. */
const LOOKS = 200;
/** How long the owner sleeps before it looks again, in milliseconds. */
const NAP = 1;
/** After how many naps it looks whether the reader still lives. */
const NAPS = 16;

/**
 * Holds clients off guest memory while it changes: the owner's half of an asymmetric lock.
 *
 * ```
 *   client                                owner
 *   reading = 1                           sequence += 1 (odd)
 *   sequence odd? reading = 0, wait       reading of each client = 1? wait
 *   access                                change
 *   reading = 0, sequence odd? notify     sequence += 1 (even), notify
 * ```
 *
 * Each side first writes and then reads, so that one of them always sees the other. A client pays for two stores to a
 * word that is its own; the owner pays for all clients, but only when it changes something. A client whose thread has
 * ended counts as out, whatever its word says.
 */
export class Gate {
  /** The words that all clients look at. */
  readonly words: Int32Array<SharedArrayBuffer> = new Int32Array(
    new SharedArrayBuffer(GATE.words * Int32Array.BYTES_PER_ELEMENT),
  );
  /** The clients that may read. */
  readonly readers: Set<Reader> = new Set();
  #shut = false;

  /** Whether clients are held off. */
  get isShut(): boolean {
    return this.#shut;
  }

  /** Returns once no client accesses guest memory; none will until `open`. */
  shut(): void {
    if (this.#shut) return;
    this.#shut = true;
    Atomics.add(this.words, GATE.sequence, 1);
    for (const reader of this.readers) this.#await(reader);
  }

  /** Lets clients go on. */
  open(): void {
    if (!this.#shut) return;
    this.#shut = false;
    Atomics.add(this.words, GATE.sequence, 1);
    Atomics.notify(this.words, GATE.sequence);
  }

  /** Keeps clients off for good: from now on they are told that the manager is gone. */
  close(): void {
    this.shut();
    Atomics.store(this.words, GATE.closed, 1);
    Atomics.notify(this.words, GATE.sequence);
  }

  #await(reader: Reader): void {
    const { line } = reader;
    for (let looks = 0; looks < LOOKS; looks++) {
      if (Atomics.load(line, LINE.reading) === 0) return;
    }
    for (let naps = 1; !reader.gone && Atomics.load(line, LINE.reading) !== 0; naps++) {
      Atomics.wait(line, LINE.reading, 1, NAP);
      if (naps % NAPS === 0) reader.gone = !isAlive(reader.thread);
    }
  }
}
