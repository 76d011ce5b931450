/** After how many turns without a wait others on the event loop get theirs. */
const TURNS = 64;

/**
 * A word that one thread rings to wake another one's event loop, which is quicker than a port.
 *
 * Waiting for it does not keep an event loop alive: the ports do that. Whatever the other side makes of the word, it says only
 * that there may be something to do.
 */
export class Bell {
  readonly #word: Int32Array;
  #closed = false;

  /** Over one word of shared memory. */
  constructor(word: Int32Array<SharedArrayBuffer>) {
    this.#word = word;
  }

  /** Calls `answer` on the event loop whenever it has been rung, until it is closed. `answer` must not throw. */
  async listen(answer: () => void): Promise<void> {
    for (let turns = 1; !this.#closed; turns++) {
      const heard = Atomics.load(this.#word, 0);
      answer();
      const rung = Atomics.waitAsync(this.#word, 0, heard);
      if (rung.async) await rung.value;
      // Rung again meanwhile. Whoever rings without end does not get the event loop to itself.
      else if (turns % TURNS === 0) await new Promise((resolve) => setTimeout(resolve, 0));
    }
  }

  /** Ends listening. */
  close(): void {
    this.#closed = true;
    ring(this.#word);
  }
}

/** Rings. */
export function ring(word: Int32Array): void {
  Atomics.add(word, 0, 1);
  Atomics.notify(word, 0);
}
