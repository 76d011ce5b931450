import { LINE, type SharedWords } from "./shared_words.ts";

/** A client as the gate sees it. */
export interface Reader {
  /** The words of the client: `LINE`. */
  readonly line: SharedWords;
  /** How long it is waited for, in milliseconds. */
  readonly deadline: number;
  /** Whether the thread or the process that reads is still there. */
  isAlive(): boolean;
  /** Is called again and again while the reader is waited for: it may need something that only this thread can give. */
  help?(): void;
  /** Whether it counts as out for good, whatever its word says. */
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
 *   reading = 1                           sequence of each client += 1 (odd)
 *   sequence odd? reading = 0, wait       reading of each client = 1? wait
 *   access                                change
 *   reading = 0, sequence odd? notify     sequence of each client += 1 (even), notify
 * ```
 *
 * Each side first writes and then reads, so that one of them always sees the other. A client pays for two stores to a
 * word that is its own; the owner pays for all clients, but only when it changes something. Every client has a sequence
 * of its own, which the owner writes and never reads: what one client makes of its words is nothing to the others.
 *
 * A client whose thread or process has ended counts as out. So does one that does not come out within its deadline, and
 * `onOverdue` is told.
 */
export class Gate {
  /** The clients that may read: a list that is replaced, not changed, since it is gone through while others come and go. */
  #readers: readonly Reader[] = [];
  #sequence = 0;
  /** Is told of a reader that was waited for in vain. Must not throw. */
  onOverdue: (reader: Reader) => void = () => {};

  /** Whether clients are held off. */
  get isShut(): boolean {
    return (this.#sequence & 1) !== 0;
  }

  /** Whether there is nobody to hold off. */
  get isEmpty(): boolean {
    return this.#readers.length === 0;
  }

  /** Lets a client read, from the next `open` on if the gate is shut. */
  add(reader: Reader): void {
    Atomics.store(reader.line.words, LINE.sequence, this.#sequence);
    this.#readers = [...this.#readers.filter((other) => other !== reader), reader];
  }

  /** Forgets a client, which reads no more. */
  delete(reader: Reader): void {
    this.#readers = this.#readers.filter((other) => other !== reader);
  }

  /** Returns once no client accesses guest memory; none will until `open`. */
  shut(): void {
    if (this.isShut) return;
    this.#step();
    const readers = this.#readers;
    // All of them have the same time to come out: otherwise many could keep the owner waiting for many times as long.
    let since = 0;
    for (let i = 0; i < readers.length; i++) {
      const reader = readers[i]!;
      if (reader.gone || Atomics.load(reader.line.words, LINE.reading) === 0) continue;
      if (since === 0) since = performance.now();
      this.#await(reader, since);
    }
  }

  /** Lets clients go on. */
  open(): void {
    if (!this.isShut) return;
    this.#step();
    const readers = this.#readers;
    for (let i = 0; i < readers.length; i++) {
      const { line } = readers[i]!;
      if (Atomics.load(line.words, LINE.waiting) !== 0) line.notify(LINE.sequence);
    }
  }

  #step(): void {
    // Kept small enough for a word, and odd or even as it was.
    this.#sequence = (this.#sequence + 1) & 0x3fff_ffff;
    const readers = this.#readers;
    for (let i = 0; i < readers.length; i++) {
      Atomics.store(readers[i]!.line.words, LINE.sequence, this.#sequence);
    }
  }

  #await(reader: Reader, since: number): void {
    const { line } = reader;
    const { words } = line;
    for (let looks = 0; looks < LOOKS; looks++) {
      if (Atomics.load(words, LINE.reading) === 0) return;
    }
    const until = since + reader.deadline;
    for (let naps = performance.now() > until ? NAPS : 1;; naps++) {
      const reading = Atomics.load(words, LINE.reading);
      if (reading === 0) return;
      reader.help?.();
      line.wait(LINE.reading, reading, NAP);
      if (naps % NAPS !== 0) continue;
      if (!reader.isAlive()) {
        reader.gone = true;
        return;
      }
      if (performance.now() > until) {
        reader.gone = true;
        return this.onOverdue(reader);
      }
    }
  }
}
