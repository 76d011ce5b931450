import { DisposedError } from "../core/errors.ts";
import type { MemoryRange } from "../core/memory_range.ts";
import type { FrozenRam } from "./copies.ts";
import type { LaidOutRam } from "./guest_parts.ts";
import type { RamVisibility } from "./ram_visibility.ts";

/** RAM of one moment, as something to make guests of. */
export interface FrozenMoment {
  /** The RAM, over the frozen files and copy-on-write. */
  readonly laidOut: LaidOutRam;
  /** How each range was switched. */
  readonly visibility: readonly { readonly range: MemoryRange; readonly to: RamVisibility }[];
  readonly ram: FrozenRam;
}

/** What a `Template` is, whatever it makes clones of. */
export class FrozenMemory<Guest, Options> implements Disposable {
  readonly #moment: FrozenMoment;
  readonly #hold: Disposable;
  readonly #make: (moment: FrozenMoment, options: Options | undefined) => Guest;
  #disposed = false;

  /** Made by `GuestMemoryManager.freeze`. */
  constructor(moment: FrozenMoment, make: (moment: FrozenMoment, options: Options | undefined) => Guest) {
    this.#moment = moment;
    this.#hold = moment.ram.frozen.hold();
    this.#make = make;
  }

  /** The ranges of RAM that it has, lowest first. */
  get ranges(): readonly MemoryRange[] {
    return this.#moment.visibility.map(({ range }) => range);
  }

  /**
   * Makes another guest's memory with the same RAM, switched in the same way, and nothing else: no devices, no partitions.
   * It takes a number of system calls that does not depend on how much RAM there is, reads no bytes, and costs memory
   * only for what the clone writes.
   *
   * @throws {DisposedError} After dispose.
   * @throws {OsError} If the host is out of addresses.
   * @throws {LimitError} If host mappings would run out.
   */
  clone(options?: Options): Guest {
    if (this.#disposed) throw new DisposedError("The template");
    return this.#make(this.#moment, options);
  }

  /** Lets go of the memory; clones keep theirs. Does nothing the second time. */
  [Symbol.dispose](): void {
    this.#disposed = true;
    this.#hold[Symbol.dispose]();
  }
}
