import type { Source } from "./source.ts";
import type { History } from "./history.ts";

/** How long news are held back, in milliseconds: a screen does not show more, and requests come in bursts. */
const DELAY = 33;

/** Keeps the history while somebody looks, and tells those who look that there is something new. */
export class Watch implements Disposable {
  readonly #source: Source;
  readonly #history: History;
  readonly #always: boolean;
  readonly #listeners = new Set<() => void>();
  #watching: Disposable | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** `always`: whether the history is kept while nobody looks, too. */
  constructor(source: Source, history: History, always: boolean) {
    this.#source = source;
    this.#history = history;
    this.#always = always;
    if (always) this.#start();
  }

  /** Whether requests are seen now. */
  get isWatching(): boolean {
    return this.#watching !== null;
  }

  /** Calls `news` after requests, until the result is disposed. */
  listen(news: () => void): Disposable {
    this.#listeners.add(news);
    this.#start();
    return {
      [Symbol.dispose]: () => {
        this.#listeners.delete(news);
        if (this.#listeners.size === 0 && !this.#always) this.#stop();
      },
    };
  }

  /** Tells that something is new. */
  readonly notify = (): void => {
    if (this.#timer !== undefined || this.#listeners.size === 0) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      for (const news of this.#listeners) news();
    }, DELAY);
    Deno.unrefTimer(this.#timer);
  };

  /** Looks no more. */
  [Symbol.dispose](): void {
    this.#listeners.clear();
    this.#stop();
  }

  #start(): void {
    const { regions, map } = this.#source;
    if (this.#watching !== null || regions.disposed) return;
    // Requests may have been missed since the last point.
    const state = map.state();
    if (this.#history.at(this.#history.last)?.state !== state) this.#history.begin(state);
    this.#watching = regions.watchRequests((record) => {
      this.#history.add(record);
      if (this.#timer === undefined) this.notify();
    });
  }

  #stop(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#watching?.[Symbol.dispose]();
    this.#watching = null;
  }
}
