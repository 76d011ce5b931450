import type { Alias } from "../../ffi/host/alias.ts";
import { isDetached, revokeView } from "../../ffi/os/view.ts";
import type { MemoryRange } from "../core/memory_range.ts";
import type { Span } from "../core/span.ts";
import type { Report } from "../targets/report.ts";
import { LockedMemory } from "./locked_memory.ts";

/** What is locked. */
export interface Lock extends Span {
  /** Whether its holder may write; not where left out. */
  readonly write?: boolean;
}

/** One lock that this thread has given out. */
interface Held<L extends Lock> {
  readonly range: MemoryRange;
  /** What its giver knows it by. */
  readonly lock: L;
  /** The second mapping its bytes are in, if they are not guest memory's own. */
  readonly alias: Alias | undefined;
  /** The bytes, while somebody can still dispose the lock. */
  buffer: ArrayBuffer | null;
  /** The bytes, once nobody can. */
  rest: WeakRef<ArrayBuffer> | null;
}

/**
 * The locks of one manager or client, and what becomes of those that nobody disposes.
 *
 * ```
 *   held -> disposed                                          the ordinary way
 *   held -> lock collected -> its bytes collected -> released, with a warning
 *   held -> bytes transferred away -> held for good           whoever has them now still looks at the memory
 * ```
 *
 * The bytes may outlive the lock (`const { bytes } = memory.lock(range)`), so both have to be gone. While the lock is
 * there, its bytes are kept too, so that it is known whether they were transferred away.
 */
export class HeldLocks<L extends Lock> {
  readonly #held = new Map<number, Held<L>>();
  readonly #released: (lock: L) => void;
  readonly #report: Report;
  // Made with the first lock: most clones never have one.
  #locks: FinalizationRegistry<number> | null = null;
  #buffers: FinalizationRegistry<number> | null = null;
  #nextId = 0;

  /** `released` is told of each lock that is gone, but for those that `revokeAll` ends. */
  constructor(released: (lock: L) => void, report: Report) {
    this.#released = released;
    this.#report = report;
  }

  /** Gives out a lock. The buffer and the alias are its own from now on, and are gone if this throws. */
  hold(
    range: MemoryRange,
    lock: L,
    buffer: ArrayBuffer,
    alias: Alias | undefined,
    writeBack?: () => void,
  ): LockedMemory {
    const id = this.#nextId++;
    try {
      const release = () => this.#release(id);
      const locked = new LockedMemory(range, { buffer, release, ...(writeBack !== undefined && { writeBack }) });
      this.#locks ??= new FinalizationRegistry((id) => this.#lockCollected(id));
      this.#locks.register(locked, id);
      this.#held.set(id, { range, lock, alias, buffer, rest: null });
      return locked;
    } catch (error) {
      revokeView(buffer);
      alias?.[Symbol.dispose]();
      throw error;
    }
  }

  /** Detaches all bytes; what was transferred away is a failure, and its memory has to be kept. */
  revokeAll(): { failures: unknown[]; kept: Span[] } {
    const failures: unknown[] = [];
    const kept: Span[] = [];
    for (const { range, alias, buffer, rest } of this.#held.values()) {
      const bytes = buffer ?? rest?.deref();
      try {
        if (bytes !== undefined) revokeView(bytes);
        alias?.[Symbol.dispose]();
      } catch (error) {
        failures.push(error);
        if (alias === undefined) kept.push(range);
      }
    }
    return { failures, kept };
  }

  /** Disposes all of them. Returns what failed: what was transferred away stays held. */
  disposeAll(): unknown[] {
    const failures: unknown[] = [];
    for (const [id, { buffer, rest }] of [...this.#held]) {
      try {
        const bytes = buffer ?? rest?.deref();
        if (bytes !== undefined) revokeView(bytes);
        this.#release(id);
      } catch (error) {
        failures.push(error);
      }
    }
    return failures;
  }

  /** Whether there are none. */
  get isEmpty(): boolean {
    return this.#held.size === 0;
  }

  /** Whether one of them covers a part of `[start, end)`. */
  overlaps(start: number, end: number): boolean {
    for (const { lock } of this.#held.values()) if (lock.start < end && start < lock.end) return true;
    return false;
  }

  #release(id: number): void {
    const held = this.#held.get(id);
    if (held === undefined) return;
    this.#held.delete(id);
    held.alias?.[Symbol.dispose]();
    this.#released(held.lock);
  }

  #lockCollected(id: number): void {
    const held = this.#held.get(id);
    if (held === undefined || held.buffer === null) return;
    if (isDetached(held.buffer)) {
      return this.#report("warn", `The bytes of a lock were transferred away, and ${held.range} stays locked for good`);
    }
    this.#buffers ??= new FinalizationRegistry((id) => this.#bytesCollected(id));
    this.#buffers.register(held.buffer, id);
    held.rest = new WeakRef(held.buffer);
    held.buffer = null;
  }

  #bytesCollected(id: number): void {
    const held = this.#held.get(id);
    if (held === undefined) return;
    try {
      this.#release(id);
    } catch (error) {
      return this.#report("error", `A lock of ${held.range} that was never disposed cannot be released`, error);
    }
    this.#report("warn", `A lock of ${held.range} was dropped without being disposed, and is released now`);
  }
}
