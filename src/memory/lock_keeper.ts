import type { Alias } from "../../ffi/host/alias.ts";
import type { Mappable } from "../../ffi/files/mappable.ts";
import { revokeView } from "../../ffi/os/view.ts";
import { DisposedError, MappingError, MembackingError, MemoryLockedError } from "../core/errors.ts";
import { LockTable } from "../core/lock_table.ts";
import { MemoryRange } from "../core/memory_range.ts";
import { fragments } from "../core/map/overlap.ts";
import type { Piece, Region } from "../core/map/region.ts";
import type { Plan } from "../core/plan/plan.ts";
import type { Entry } from "../core/range_map.ts";
import type { Span } from "../core/span.ts";
import type { State } from "../core/map/state.ts";
import type { VaTarget } from "../core/targets.ts";
import { pieceAt, piecesIn } from "../core/map/view.ts";
import { mappableOf } from "./file_backing.ts";
import type { AccessMap, Backed } from "./access_map.ts";
import { LockedMemory } from "./locked_memory.ts";
import { readOnlyView, type ViewPart } from "./read_only_view.ts";

/** A lock: which GPAs, and the second mapping its bytes are in, if they are not guest memory's own. */
interface Held extends Span {
  readonly alias: Alias | undefined;
}

/** The memory map as `GuestMemory` sees it, and the locks on it. */
export class LockKeeper implements AccessMap {
  readonly #va: VaTarget<Mappable>;
  readonly #state: () => State;
  readonly #check: () => void;
  readonly #table = new LockTable();
  readonly #held = new Map<ArrayBuffer, Held>();
  /** The regions being torn down, and by how many callers. */
  readonly #closing = new Map<Region, number>();
  readonly #waiting = new Set<() => void>();
  /** Is told when a region begins or ceases to be torn down. */
  onClosing: ((region: Region) => void) | null = null;

  /** `check` throws while memory is being changed and once the manager is gone. */
  constructor(va: VaTarget<Mappable>, state: () => State, check: () => void) {
    this.#va = va;
    this.#state = state;
    this.#check = check;
  }

  get length(): number {
    return this.#va.length;
  }

  find(gpa: number): Backed | undefined {
    this.#check();
    const state = this.#state();
    const entry = pieceAt(state, gpa);
    if (entry === undefined) return undefined;
    const { mapping, writable } = entry.value;
    let { start, end } = entry;
    // What an undo could not put back may be anything; what is around it is as it was.
    for (const lost of state.damage.lost.overlapping(start, end)) {
      if (gpa < lost.start) end = Math.min(end, lost.start);
      else if (gpa >= lost.end) start = lost.end;
      else return undefined;
    }
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
      if (this.#closing.has(region)) throw new DisposedError(`Region "${region.name}"`, "is being torn down");
    }
    const { buffer, alias } = pieces.every(({ writable }) => writable)
      ? { buffer: this.view(start, end), alias: undefined }
      : readOnlyView(piecesIn(state, start, end).map(viewPart), range, () => this.view(start, end));
    let locked: LockedMemory;
    try {
      locked = new LockedMemory(range, { buffer, release: () => this.#release(buffer) });
    } catch (error) {
      revokeView(buffer);
      alias?.[Symbol.dispose]();
      throw error;
    }
    this.#table.add(start, end);
    this.#held.set(buffer, { start, end, alias });
    return locked;
  }

  /**
   * Throws if a step of the plan would change host memory that is locked.
   *
   * @throws {MemoryLockedError} Naming the lock.
   */
  check({ steps, discards }: Plan): void {
    if (this.#table.isEmpty) return;
    for (const step of steps) if (step.kind === "host") this.#checkStep(step);
    for (const step of discards) this.#checkStep(step);
  }

  #checkStep({ start, end }: Span): void {
    const conflict = this.#table.conflict(start, end);
    if (conflict !== undefined) throw new MemoryLockedError(new MemoryRange(conflict.start, conflict.end));
  }

  /**
   * Refuses new locks on `region`, waits until the old ones are gone, and calls `then` before new ones are possible.
   * Aborting allows new ones again.
   */
  async drain(region: Region, signal: AbortSignal | undefined, then: () => void): Promise<void> {
    const isLocked = ({ start, end }: Span) => this.#table.conflict(start, end) !== undefined;
    this.#closing.set(region, (this.#closing.get(region) ?? 0) + 1);
    try {
      this.onClosing?.(region);
      signal?.throwIfAborted();
      while (fragments(this.#state().visible, region).some(isLocked)) {
        await this.#nextRelease(signal);
        signal?.throwIfAborted();
      }
      then();
    } finally {
      const others = (this.#closing.get(region) ?? 1) - 1;
      if (others === 0) this.#closing.delete(region);
      else this.#closing.set(region, others);
      this.onClosing?.(region);
    }
  }

  /** Whether nobody holds a lock. */
  get isEmpty(): boolean {
    return this.#table.isEmpty;
  }

  /** Whether `region` is being torn down. */
  isClosing(region: Region): boolean {
    return this.#closing.has(region);
  }

  /** Whether something waits for locks to be released. */
  get isDraining(): boolean {
    return this.#closing.size > 0;
  }

  /** Counts a lock that another thread holds. */
  addForeign({ start, end }: Span): void {
    this.#table.add(start, end);
  }

  /** Counts it no longer. */
  removeForeign({ start, end }: Span): void {
    this.#table.remove(start, end);
    this.#wake();
  }

  /**
   * Detaches the bytes of every lock. What was transferred away cannot be: it is reported as a failure, and the memory
   * in `kept` has to stay as it is, since somebody still looks at it.
   */
  revokeAll(): { failures: unknown[]; kept: Span[] } {
    const failures: unknown[] = [];
    const kept: Span[] = [];
    for (const [buffer, { start, end, alias }] of this.#held) {
      try {
        revokeView(buffer);
        alias?.[Symbol.dispose]();
      } catch (error) {
        failures.push(error);
        if (alias === undefined) kept.push({ start, end });
      }
    }
    this.#wake();
    return { failures, kept };
  }

  /** The locked spans with how often each is locked. */
  entries(): { start: number; end: number; value: number }[] {
    return this.#table.entries();
  }

  #release(buffer: ArrayBuffer): void {
    const held = this.#held.get(buffer);
    if (held === undefined) return;
    this.#held.delete(buffer);
    held.alias?.[Symbol.dispose]();
    this.#table.remove(held.start, held.end);
    this.#wake();
  }

  #wake(): void {
    for (const wake of this.#waiting) wake();
  }

  #nextRelease(signal: AbortSignal | undefined): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const wake = () => {
      this.#waiting.delete(wake);
      signal?.removeEventListener("abort", wake);
      resolve();
    };
    this.#waiting.add(wake);
    signal?.addEventListener("abort", wake);
    return promise;
  }
}

function viewPart({ start, end, value: { mapping, writable } }: Entry<Piece>): ViewPart {
  return { start, end, mappable: mappableOf(mapping), fileOffset: start + mapping.delta, writable };
}
