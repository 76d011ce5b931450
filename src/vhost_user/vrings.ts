/**
 * The vrings of a device, and whether the back end is at work on them.
 *
 * @module
 */

import type { EventFd } from "../../ffi/os/event_fd.ts";
import { VhostUserError } from "./errors.ts";
import type { VringOptions, VringPart } from "./vring.ts";

/**
 * How a vring is: the back end has it (`"running"`), its memory is not shared just now and the back end has been told to
 * leave it alone (`"suspended"`), or the back end that had it is gone (`"lost"`).
 */
export type VringState = "running" | "suspended" | "lost";

/** A vring that was started. */
export interface Vring {
  /** Its index. */
  readonly index: number;
  /** What it consists of. */
  readonly ring: VringOptions;
  /** Its parts in guest memory. */
  readonly parts: readonly VringPart[];
  /** How it is. */
  state: VringState;
  /** Where the back end left off, while it is suspended. */
  base: number;
  /** Whether the back end carries out what it finds in it. */
  enabled: boolean;
}

/** All vrings of a device that were started and not stopped. */
export class Vrings implements Iterable<Vring> {
  readonly #rings = new Map<number, Vring>();

  /** Takes a vring into the books. @throws {VhostUserError} `"refused"` if it is there. */
  add(vring: Vring): void {
    if (this.#rings.has(vring.index)) {
      throw new VhostUserError("refused", "SET_VRING_KICK", `Vring ${vring.index} is running, stop it first`);
    }
    this.#rings.set(vring.index, vring);
  }

  /** The vring with an index. */
  get(index: number): Vring | undefined {
    return this.#rings.get(index);
  }

  /** Takes a vring out of the books, if it is still the one that is there. */
  delete(vring: Vring): void {
    if (this.#rings.get(vring.index) === vring) this.#rings.delete(vring.index);
  }

  /** How many there have to be in a back end: one more than the highest index. */
  get needed(): number {
    return Math.max(0, ...[...this.#rings.keys()].map((index) => index + 1));
  }

  /** Those of a state. */
  in(state: VringState): Vring[] {
    const found: Vring[] = [];
    for (const vring of this.#rings.values()) if (vring.state === state) found.push(vring);
    return found;
  }

  /** The back end is gone. */
  lose(): void {
    for (const vring of this.in("running")) vring.state = "lost";
  }

  /** Forgets all of them: the device has been reset. */
  clear(): void {
    this.#rings.clear();
  }

  [Symbol.iterator](): IterableIterator<Vring> {
    return this.#rings.values();
  }
}

/** Signals an event, unless it has been disposed by its owner. */
export function nudge(event: EventFd | undefined): void {
  try {
    event?.signal();
  } catch {
    // A ring whose kick is gone is not kicked by anybody any more.
  }
}
