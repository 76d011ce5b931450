/**
 * A base address register (BAR) of a PCI function: where a guest wants a window of 32-bit memory space to be.
 *
 * @module
 */

import { MembackingError, MemoryRange } from "membacking";

/** A guest asked for an address that the host bridge does not send to the bus. The BAR is where it was. */
export class BarPlacementError extends MembackingError {
  override name = "BarPlacementError";
  /** Where the BAR would have been. */
  readonly range: MemoryRange;
  /** Where BARs can be. */
  readonly window: MemoryRange;

  /** Builds the error. */
  constructor(name: string, range: MemoryRange, window: MemoryRange) {
    super(`${name} cannot be at ${range}, the bus has ${window}`);
    this.range = range;
    this.window = window;
  }
}

/** What a BAR is for. */
export interface BarOptions {
  /** For messages. */
  readonly name: string;
  /** How long the window is, in bytes: a power of two. */
  readonly length: number;
  /** The addresses that reach the bus. */
  readonly bus: MemoryRange;
  /** Puts the window somewhere, or nowhere; throws and leaves it where it was if that cannot be. */
  readonly move: (gpa: number | null) => void;
}

/** One BAR. */
export class Bar {
  readonly #options: BarOptions;
  #placed: number | null = null;
  #last: number | null = null;

  /** A BAR that is nowhere yet. */
  constructor(options: BarOptions) {
    this.#options = options;
  }

  /** Where the guest finds it; `null` while it does not. */
  get placed(): number | null {
    return this.#placed;
  }

  /** The bits of its register that a guest can set: the address, in units of its length. */
  get mask(): number {
    return (0x1_0000_0000 - this.#options.length) >>> 0;
  }

  /** Whether it answers at `gpa`. */
  contains(gpa: number): boolean {
    return this.#placed !== null && gpa >= this.#placed && gpa < this.#placed + this.#options.length;
  }

  /**
   * Goes where its register says, or nowhere while the function's memory is off.
   *
   * @returns What the register reads from now on, and the error if the guest cannot have what it asked for.
   */
  follow(register: number, enabled: boolean): { register: number; refused?: unknown } {
    // All ones asks how long the window is; that is not a place.
    if (enabled && register === this.mask) return { register };
    try {
      // Zero is a register that nobody has set yet.
      this.#go(enabled && register !== 0 ? register : null);
      return { register };
    } catch (refused) {
      if (this.#placed === null) this.#goBack();
      return { register: this.#placed ?? 0, refused };
    }
  }

  #go(gpa: number | null): void {
    if (gpa === this.#placed) return;
    if (gpa !== null) {
      const { name, length, bus } = this.#options;
      const range = MemoryRange.of(gpa, length);
      if (!bus.contains(range)) throw new BarPlacementError(name, range, bus);
    }
    this.#options.move(gpa);
    this.#placed = gpa;
    if (gpa !== null) this.#last = gpa;
  }

  /** One that was off and was then switched on at an impossible place is where it last was, if that is still free. */
  #goBack(): void {
    try {
      this.#go(this.#last);
    } catch {
      // Then it is nowhere.
    }
  }
}
