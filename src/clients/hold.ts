import { DisposedError, ReentrancyError } from "../core/errors.ts";
import { CLOSED, LINE, type SharedWords } from "../serving/shared_words.ts";

/** How often a client looks whether the owner is done before it sleeps: most changes take some microseconds. */
const LOOKS = 1000;
/** How long it sleeps before it looks whether the owner still lives, in milliseconds. */
const NAP = 200;

/** What a client says once the thread or the process of its owner is gone. */
export const OWNER_ENDED: readonly [what: string, how: string] = ["The owner of the region manager", "has ended"];

/** What a client says of itself when it is asked to do something it cannot do any more. */
const WHY: Readonly<Record<number, readonly [what: string, how: string]>> = {
  [CLOSED.client]: ["The region manager client", "is no longer served by its owner"],
  [CLOSED.manager]: ["The region manager", "has been disposed"],
  [CLOSED.cutOff]: ["The region manager client", "was cut off by its owner, whose log says why"],
};

/** Holds changes of the memory map off during an access: the client's half of the lock that `Gate` describes. */
export class Hold {
  readonly #line: SharedWords;
  #words: Int32Array;
  readonly #isOwnerAlive: () => boolean;
  readonly #isOwnThread: boolean;
  /** The state of the gate that was seen last; -1 is none. */
  #sequence = -1;
  #closed: readonly [what: string, how: string] | null = null;
  /** Called when the memory map may have changed since the last time. */
  invalidate: () => void = () => {};

  constructor(line: SharedWords, isOwnerAlive: () => boolean, isOwnThread: boolean) {
    // What another thread has sent: with fewer words, looking at one would throw where nobody expects it.
    if (!(line.words.length >= LINE.words)) throw new TypeError("The words that the owner has sent are too few");
    this.#line = line;
    this.#words = line.words;
    this.#isOwnerAlive = isOwnerAlive;
    this.#isOwnThread = isOwnThread;
  }

  /** Refuses to be entered from now on, for the reason given; the first one counts, the owner's before it. */
  close(what: string, how: string): void {
    this.#closed ??= this.#closedByOwner() ?? [what, how];
    this.#sequence = -1;
    // The words themselves may be gone next; in these, no sequence is the one that was seen last.
    this.#words = new Int32Array(LINE.words);
  }

  /** Why it cannot be entered any more; `null` while it can. */
  get closed(): DisposedError | null {
    const why = this.#closed ?? this.#closedByOwner();
    return why === null ? null : new DisposedError(...why);
  }

  /** Whether somebody in the owner waits for locks to be released. */
  get isDraining(): boolean {
    return Atomics.load(this.#words, LINE.draining) !== 0;
  }

  /** Whether what the client writes is to be marked. Changes while changes are held off. */
  get isMarking(): boolean {
    return Atomics.load(this.#words, LINE.marking) !== 0;
  }

  /**
   * Holds changes off until `leave`. Waits while there is one.
   *
   * @throws {DisposedError} If the manager is gone, or this client no longer served. Nothing is held then.
   * @throws {ReentrancyError} Inside a callback of the region manager, on its own thread.
   */
  enter(): void {
    Atomics.store(this.#words, LINE.reading, 1);
    if (Atomics.load(this.#words, LINE.sequence) !== this.#sequence) this.#catchUp();
  }

  /** Lets changes go on. */
  leave(): void {
    Atomics.store(this.#words, LINE.reading, 0);
    if (Atomics.load(this.#words, LINE.sequence) !== this.#sequence) this.#line.notify(LINE.reading);
  }

  #catchUp(): void {
    let held = false;
    try {
      while (true) {
        const sequence = Atomics.load(this.#words, LINE.sequence);
        const why = this.closed;
        if (why === null && sequence % 2 === 0) {
          this.invalidate();
          this.#sequence = sequence;
          held = true;
          return;
        }
        this.#letGo();
        if (why !== null) throw why;
        if (this.#isOwnThread) throw new ReentrancyError();
        this.#await(sequence);
        Atomics.store(this.#words, LINE.reading, 1);
      }
    } finally {
      // Whatever went wrong, running out of stack included: the owner must not wait for it.
      if (!held) this.#letGo();
    }
  }

  #closedByOwner(): readonly [what: string, how: string] | null {
    const closed = Atomics.load(this.#words, LINE.closed);
    return closed === CLOSED.no ? null : WHY[closed] ?? ["The region manager client", "has lost its owner"];
  }

  #letGo(): void {
    Atomics.store(this.#words, LINE.reading, 0);
    this.#line.notify(LINE.reading);
  }

  /** Waits until the gate is in another state. */
  #await(sequence: number): void {
    const words = this.#words;
    for (let looks = 0; looks < LOOKS; looks++) {
      if (Atomics.load(words, LINE.sequence) !== sequence) return;
    }
    Atomics.store(words, LINE.waiting, 1);
    this.#line.wait(LINE.sequence, sequence, NAP);
    Atomics.store(words, LINE.waiting, 0);
    if (Atomics.load(words, LINE.sequence) === sequence && !this.#isOwnerAlive()) {
      this.close(...OWNER_ENDED);
    }
  }
}
