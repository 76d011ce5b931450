import { isAlive, type ThreadIdentity } from "../../ffi/os/thread.ts";
import { DisposedError, ReentrancyError } from "../core/errors.ts";
import { GATE, LINE } from "../serving/shared_words.ts";

/** How often a client looks whether the owner is done before it sleeps: most changes take some microseconds. */
const LOOKS = 1000;
/** How long it sleeps before it looks whether the owner still lives, in milliseconds. */
const NAP = 200;

/** Holds changes of the memory map off during an access: the client's half of the lock that `Gate` describes. */
export class Hold {
  readonly #gate: Int32Array;
  readonly #line: Int32Array;
  readonly #owner: ThreadIdentity;
  readonly #isOwnThread: boolean;
  /** The state of the gate that was seen last; -1 is none. */
  #sequence = -1;
  #closed = false;
  /** Called when the memory map may have changed since the last time. */
  invalidate: () => void = () => {};

  constructor(gate: Int32Array, line: Int32Array, owner: ThreadIdentity, isOwnThread: boolean) {
    this.#gate = gate;
    this.#line = line;
    this.#owner = owner;
    this.#isOwnThread = isOwnThread;
  }

  /** Refuses to be entered from now on. */
  close(): void {
    this.#closed = true;
    this.#sequence = -1;
  }

  /** Whether it can still be entered. */
  get isOpen(): boolean {
    return this.#whyClosed() === null;
  }

  /**
   * Holds changes off until `leave`. Waits while there is one.
   *
   * @throws {DisposedError} If the manager is gone, or this client no longer served. Nothing is held then.
   * @throws {ReentrancyError} Inside a callback of the region manager, on its own thread.
   */
  enter(): void {
    Atomics.store(this.#line, LINE.reading, 1);
    if (Atomics.load(this.#gate, GATE.sequence) !== this.#sequence) this.#catchUp();
  }

  /** Lets changes go on. */
  leave(): void {
    Atomics.store(this.#line, LINE.reading, 0);
    if (Atomics.load(this.#gate, GATE.sequence) !== this.#sequence) Atomics.notify(this.#line, LINE.reading);
  }

  #catchUp(): void {
    while (true) {
      const sequence = Atomics.load(this.#gate, GATE.sequence);
      const why = this.#whyClosed();
      if (why === null && sequence % 2 === 0) {
        this.#sequence = sequence;
        return this.invalidate();
      }
      Atomics.store(this.#line, LINE.reading, 0);
      Atomics.notify(this.#line, LINE.reading);
      if (why !== null) throw new DisposedError(why);
      if (this.#isOwnThread) throw new ReentrancyError();
      this.#await(sequence);
      Atomics.store(this.#line, LINE.reading, 1);
    }
  }

  /** Waits until the gate is in another state. */
  #await(sequence: number): void {
    for (let looks = 0; looks < LOOKS; looks++) {
      if (Atomics.load(this.#gate, GATE.sequence) !== sequence) return;
    }
    if (Atomics.wait(this.#gate, GATE.sequence, sequence, NAP) === "timed-out" && !isAlive(this.#owner)) this.close();
  }

  #whyClosed(): string | null {
    if (Atomics.load(this.#gate, GATE.closed) !== 0) return "The region manager";
    return this.#closed || Atomics.load(this.#line, LINE.closed) !== 0 ? "The region manager client" : null;
  }
}
