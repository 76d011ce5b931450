import { Alias } from "../ffi/alias.ts";
import type { Mappable } from "../ffi/mappable.ts";
import { revokeView } from "../ffi/view.ts";
import { DisposedError, MappingError, MembackingError, MemoryLockedError } from "./core/errors.ts";
import { LockTable } from "./core/lock_table.ts";
import { MemoryRange } from "./core/memory_range.ts";
import { fragments, type Region } from "./core/overlap.ts";
import type { Step } from "./core/plan.ts";
import type { Entry } from "./core/range_map.ts";
import type { State } from "./core/state.ts";
import type { VaTarget } from "./core/targets.ts";
import { type Piece, pieceAt, piecesIn } from "./core/view.ts";
import { mappableOf } from "./file_backing.ts";
import type { AccessMap, Backed } from "./guest_memory.ts";
import { LockedMemory } from "./locked_memory.ts";

/** The memory map as `GuestMemory` sees it, and the locks on it. */
export class LockKeeper implements AccessMap {
  readonly #va: VaTarget<Mappable>;
  readonly #state: () => State;
  readonly #table = new LockTable();
  readonly #held = new Map<ArrayBuffer, Alias | undefined>();
  readonly #closing = new Set<Region>();
  #waiting: (() => void)[] = [];

  constructor(va: VaTarget<Mappable>, state: () => State) {
    this.#va = va;
    this.#state = state;
  }

  get length(): number {
    return this.#va.length;
  }

  find(gpa: number): Backed | undefined {
    const state = this.#state();
    const entry = pieceAt(state, gpa);
    if (entry === undefined) return undefined;
    const { start, end, value: { mapping, writable } } = entry;
    // What an undo could not put back may be anything.
    if (state.lost.size > 0 && state.lost.overlaps(start, end)) return undefined;
    const mappable = mappableOf(mapping);
    const file = mappable !== null && mappable.truncatable ? { mappable, offset: start + mapping.delta } : null;
    return { start, end, writable, file };
  }

  view(start: number, end: number): ArrayBuffer {
    if (this.#va.view === undefined) throw new MembackingError("This VA target has no memory to look at");
    return this.#va.view(start, end);
  }

  lock(range: MemoryRange, pieces: readonly Backed[]): LockedMemory {
    const { start, end } = range;
    const state = this.#state();
    const truncatable = pieces.find(({ file }) => file !== null);
    if (truncatable !== undefined) {
      throw new MappingError(
        "Memory of a file that someone may truncate cannot be locked, seal the file with F_SEAL_SHRINK",
        new MemoryRange(truncatable.start, truncatable.end),
      );
    }
    for (const { value: region } of state.visible.overlapping(start, end)) {
      if (this.#closing.has(region)) throw new DisposedError(`Region "${region.name}" is being torn down and`);
    }
    const { buffer, alias } = pieces.every(({ writable }) => writable)
      ? { buffer: this.view(start, end), alias: undefined }
      : aliasOf(this, piecesIn(state, start, end), range);
    this.#table.add(start, end);
    this.#held.set(buffer, alias);
    return new LockedMemory(range, {
      buffer,
      release: () => {
        if (!this.#held.delete(buffer)) return;
        alias?.[Symbol.dispose]();
        this.#table.remove(start, end);
        const waiting = this.#waiting;
        this.#waiting = [];
        for (const wake of waiting) wake();
      },
    });
  }

  /**
   * Throws if a step would change host memory that is locked.
   *
   * @throws {MemoryLockedError} Naming the lock.
   */
  check(steps: readonly Step[]): void {
    if (this.#table.isEmpty) return;
    for (const step of steps) {
      if (step.kind !== "va") continue;
      const conflict = this.#table.conflict(step.start, step.end);
      if (conflict !== undefined) throw new MemoryLockedError(new MemoryRange(conflict.start, conflict.end));
    }
  }

  /** Refuses new locks on `region` and waits until the old ones are gone. Aborting allows new ones again. */
  async drain(region: Region, signal: AbortSignal | undefined): Promise<void> {
    this.#closing.add(region);
    try {
      while (true) {
        signal?.throwIfAborted();
        const spans = fragments(this.#state().visible, region);
        if (!spans.some(({ start, end }) => this.#table.conflict(start, end) !== undefined)) return;
        await this.#released(signal);
      }
    } finally {
      this.#closing.delete(region);
    }
  }

  /** Detaches the bytes of every lock. What was transferred away cannot be, and is returned as failures. */
  revokeAll(): unknown[] {
    const failures: unknown[] = [];
    for (const [buffer, alias] of this.#held) {
      try {
        revokeView(buffer);
        alias?.[Symbol.dispose]();
      } catch (error) {
        failures.push(error);
      }
    }
    for (const wake of this.#waiting) wake();
    return failures;
  }

  /** The locked spans with how often each is locked. */
  entries(): { start: number; end: number; value: number }[] {
    return this.#table.entries();
  }

  #released(signal: AbortSignal | undefined): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#waiting.push(resolve);
    signal?.addEventListener("abort", () => resolve(), { once: true });
    return promise;
  }
}

/** A view in which stores to read-only memory stay private to it. */
function aliasOf(
  keeper: LockKeeper,
  entries: readonly Entry<Piece>[],
  range: MemoryRange,
): { buffer: ArrayBuffer; alias: Alias | undefined } {
  if (entries.every(({ value }) => value.mapping.backing === null && !value.writable)) {
    // Private memory that nobody can write: a copy of it is as good as the original.
    return { buffer: keeper.view(range.start, range.end).slice(0), alias: undefined };
  }
  const parts = entries.map(({ start, end, value: { mapping, writable } }) => {
    const mappable = mappableOf(mapping);
    if (mappable === null) {
      throw new MappingError(
        "A lock over files that are read-only cannot cover private memory too, lock them apart",
        range,
      );
    }
    const from = Math.max(start, range.start);
    return { mappable, fileOffset: from + mapping.delta, length: Math.min(end, range.end) - from, writable };
  });
  const alias = new Alias(parts);
  return { buffer: alias.buffer, alias };
}
