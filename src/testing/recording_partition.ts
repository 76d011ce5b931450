import { hex } from "../core/hex.ts";
import { MemoryRange, PAGE_SIZE } from "../core/memory_range.ts";
import type { Access, MarkDirty, Partition } from "../core/targets.ts";
import type { RecordedCall } from "./call.ts";
import type { Faults } from "./faults.ts";
import { part, Pieces } from "./pieces.ts";
import { Recorder, type RecordingOptions, TargetStateError } from "./recorder.ts";

/** One range a {@linkcode RecordingPartition} holds, as `mapRange` named it. */
export interface PartitionRange {
  /** The GPAs of the partition, in bytes. */
  readonly range: MemoryRange;
  /** The host address behind the first of them. */
  readonly hva: number;
  /** What the guest may do there. */
  readonly access: Access;
}

/** What a {@linkcode RecordingPartition} can be given. */
export interface RecordingPartitionOptions extends RecordingOptions {
  /** How many ranges it can hold. Unlimited when left out. */
  capacity?: number;
  /** Whether it can log written pages, as KVM does: then it has `setDirtyLog` and `takeDirty`. It cannot when left out. */
  dirtyLog?: boolean;
}

/**
 * A partition without a guest: it keeps the ranges it was told of, logs each call, and is strict. Mapping what is
 * mapped already, or unmapping anything but exactly one mapped range, throws {@linkcode TargetStateError}.
 *
 * @example Usage
 * ```ts
 * import { MemoryRange } from "membacking";
 * import { RecordingPartition } from "membacking/testing";
 *
 * const partition = new RecordingPartition();
 * partition.mapRange(0x7f00_0000_0000, new MemoryRange(0x0, 0x4000), { writable: false, executable: true });
 *
 * console.assert(partition.accessAt(0x3fff)?.writable === false);
 * console.assert(partition.accessAt(0x4000) === null);
 * console.assert(partition.calls.length === 1);
 * ```
 */
export class RecordingPartition implements Partition, Disposable {
  /** The name in the log and in errors: "partition" unless another was given. */
  readonly name: string;
  /** How many ranges it can hold; `Infinity` unless another number was given. */
  readonly capacity: number;
  /** Every call, oldest first, the failed ones included. */
  readonly calls: RecordedCall[];
  /** The plan of failures it follows. */
  readonly faults: Faults;
  readonly #recorder: Recorder;
  readonly #pieces = new Pieces<PartitionRange>();
  readonly #pinned = new Addresses();
  /** The first addresses of the ranges that log. */
  readonly #logging = new Set<number>();
  /** The pages in their logs. */
  readonly #dirty = new Addresses();
  #disposed = false;
  /** Begins or ends the log of exactly one mapped range. There with the option `dirtyLog`. */
  readonly setDirtyLog?: (range: MemoryRange, on: boolean) => void;
  /** Tells and forgets what `write` has put into the logs. There with the option `dirtyLog`. */
  readonly takeDirty?: (range: MemoryRange, mark: MarkDirty) => void;

  /** Makes an empty partition. */
  constructor(options: RecordingPartitionOptions = {}) {
    this.name = options.name ?? "partition";
    this.capacity = options.capacity ?? Infinity;
    this.#recorder = new Recorder(options);
    this.calls = this.#recorder.calls;
    this.faults = this.#recorder.faults;
    if (options.dirtyLog !== true) return;
    this.setDirtyLog = (range, on) => this.#setDirtyLog(range, on);
    this.takeDirty = (range, mark) => this.#takeDirty(range, mark);
  }

  /** Whether {@linkcode dispose} was called. */
  get disposed(): boolean {
    return this.#disposed;
  }

  /** The ranges it holds now, lowest address first. */
  get ranges(): readonly PartitionRange[] {
    return this.#pieces.list.map((piece) => piece.value);
  }

  /** The ranges that are pinned now, adjacent ones joined, lowest address first. */
  get pinned(): readonly MemoryRange[] {
    return this.#pinned.within(0, Infinity).map(({ start, end }) => new MemoryRange(start, end));
  }

  /** What the guest may do at `gpa`; `null` where there is no memory. */
  accessAt(gpa: number): Access | null {
    return this.#pieces.at(gpa)?.value.access ?? null;
  }

  /** The host address behind `gpa`; `null` where there is no memory. */
  hvaAt(gpa: number): number | null {
    const piece = this.#pieces.at(gpa);
    return piece === undefined ? null : piece.value.hva + gpa - piece.start;
  }

  /** The ranges that log what is written, lowest address first. */
  get logging(): readonly MemoryRange[] {
    return this.ranges.map(({ range }) => range).filter(({ start }) => this.#logging.has(start));
  }

  /**
   * Writes as a guest would. Of the pages of `range` those that lie in a range that logs are in its log afterwards; where
   * nothing logs, nobody knows.
   *
   * @throws {TargetStateError} If a part of `range` is not mapped, or not writable.
   */
  write(range: MemoryRange): void {
    this.#checkMapped(range);
    const { start, end } = range;
    for (const { value: { range, access } } of this.#pieces.overlapping(start, end)) {
      const [from, to] = [Math.max(range.start, start), Math.min(range.end, end)];
      if (!access.writable) throw new TargetStateError(`The guest cannot write ${hex(from)}`);
      if (this.#logging.has(range.start)) this.#dirty.add(from, to);
    }
  }

  /**
   * Adds a range.
   *
   * @throws {TargetStateError} If it is empty or overlaps a range that is there, or if the partition is full.
   */
  mapRange(hva: number, range: MemoryRange, access: Access): void {
    this.#run("mapRange", range, access.writable, {
      act: () => {
        if (range.isEmpty) throw new TargetStateError(`Cannot map the empty range ${range}`);
        if (!Number.isSafeInteger(hva) || hva <= 0 || hva % PAGE_SIZE !== 0) {
          throw new TargetStateError(`Cannot map ${range} at the host address ${hva}`);
        }
        const there = this.#pieces.overlapping(range.start, range.end)[0];
        if (there) throw new TargetStateError(`Cannot map ${range}: ${there.value.range} is mapped`);
        if (this.#pieces.list.length >= this.capacity) {
          throw new TargetStateError(`Cannot map ${range}: all ${this.capacity} ranges are in use`);
        }
        const value = { range, hva, access: { writable: access.writable, executable: access.executable } };
        this.#pieces.replace(range.start, range.end, [{ start: range.start, end: range.end, value }]);
        if (access.logDirty === true && this.takeDirty !== undefined) this.#logging.add(range.start);
      },
    });
  }

  /**
   * Removes a range.
   *
   * @throws {TargetStateError} If `range` is not exactly one range that was mapped.
   */
  unmapRange(range: MemoryRange): void {
    const act = () => {
      if (!this.#pieces.at(range.start)?.value.range.equals(range)) {
        throw new TargetStateError(`Cannot unmap ${range}: it is not one mapped range`);
      }
      this.#pieces.replace(range.start, range.end, []);
      this.#forget(range);
    };
    this.#run("unmapRange", range, undefined, { act, destroy: act });
  }

  /**
   * Logs the call, and does nothing else.
   *
   * @throws {TargetStateError} If a part of `range` is not mapped.
   */
  prefetchRange(range: MemoryRange): void {
    this.#run("prefetchRange", range, undefined, { act: () => this.#checkMapped(range) });
  }

  /**
   * Notes that `range` is pinned. A range that is pinned already may be pinned again.
   *
   * @throws {TargetStateError} If a part of `range` is not mapped.
   */
  pinRange(range: MemoryRange): void {
    this.#run("pinRange", range, undefined, {
      act: () => {
        this.#checkMapped(range);
        this.#pinned.add(range.start, range.end);
      },
    });
  }

  /** Notes that no part of `range` is pinned any more. */
  unpinRange(range: MemoryRange): void {
    const act = () => this.#pinned.delete(range.start, range.end);
    this.#run("unpinRange", range, undefined, { act, destroy: act });
  }

  /** Ends the partition: it forgets its ranges, and every later call throws. A region manager then leaves it alone. */
  dispose(): void {
    this.#disposed = true;
    this.#pieces.list = [];
    this.#pinned.clear();
  }

  /** The same as {@linkcode dispose}. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  #setDirtyLog(range: MemoryRange, on: boolean): void {
    const act = () => {
      if (!this.#pieces.at(range.start)?.value.range.equals(range)) {
        throw new TargetStateError(`Cannot log ${range}: it is not one mapped range`);
      }
      if (on === this.#logging.has(range.start)) return;
      this.#forget(range);
      if (on) this.#logging.add(range.start);
    };
    this.#run("setDirtyLog", range, undefined, { act, destroy: () => this.#forget(range) });
  }

  #takeDirty(range: MemoryRange, mark: MarkDirty): void {
    // Half of it is told before a call fails, as by a kernel that is asked slot by slot.
    const written = this.#dirty.within(range.start, range.end);
    const tell = (bytes: number) => {
      for (const { start, end } of written) {
        const to = Math.min(end, start + bytes);
        if (to <= start) return;
        mark(start, to);
        this.#dirty.delete(start, to);
        bytes -= to - start;
      }
    };
    this.#run("takeDirty", range, undefined, {
      act: () => tell(Infinity),
      destroy: () => {
        const pages = written.reduce((sum, { start, end }) => sum + (end - start) / PAGE_SIZE, 0);
        tell(Math.ceil(pages / 2) * PAGE_SIZE);
      },
    });
  }

  /** What is in the log of a range is lost with it. */
  #forget(range: MemoryRange): void {
    this.#logging.delete(range.start);
    this.#dirty.delete(range.start, range.end);
  }

  #run(
    method: RecordedCall["method"],
    range: MemoryRange,
    writable: boolean | undefined,
    effects: { act(): void; destroy?(): void },
  ): void {
    const call = { target: this.name, method, range, ...(writable !== undefined && { writable }) };
    this.#recorder.run(call, {
      ...effects,
      act: () => {
        if (this.#disposed) throw new TargetStateError(`Cannot call ${method} on a disposed partition`);
        effects.act();
      },
    });
  }

  #checkMapped(range: MemoryRange): void {
    let gpa = range.start;
    for (const piece of this.#pieces.overlapping(range.start, range.end)) {
      if (piece.start > gpa) break;
      gpa = piece.end;
    }
    if (gpa < range.end) throw new TargetStateError(`There is no memory at ${hex(gpa)} of the partition`);
  }
}

/** Addresses, however many they are: ranges that touch are one. */
class Addresses {
  readonly #pieces = new Pieces<true>();

  add(start: number, end: number): void {
    if (start >= end) return;
    const touching = this.#pieces.overlapping(start - 1, end + 1);
    const from = Math.min(start, touching[0]?.start ?? start);
    const to = Math.max(end, touching.at(-1)?.end ?? end);
    this.#pieces.replace(start - 1, end + 1, [{ start: from, end: to, value: true }]);
  }

  delete(start: number, end: number): void {
    this.#pieces.remove(start, end);
  }

  clear(): void {
    this.#pieces.list = [];
  }

  /** Those of `[start, end)`, as ranges in order. */
  within(start: number, end: number): readonly { readonly start: number; readonly end: number }[] {
    return this.#pieces.overlapping(start, end).map((piece) => part(piece, start, end));
  }
}
