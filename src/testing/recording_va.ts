import { hex } from "../core/hex.ts";
import { MemoryRange, PAGE_SIZE } from "../core/memory_range.ts";
import type { HostBytes, HostMemory, MemoryPolicy, VaTarget } from "../core/targets.ts";
import { fileOf, Mappable } from "../../ffi/files/mappable.ts";
import type { CallMethod, RecordedCall } from "./call.ts";
import type { Faults } from "./faults.ts";
import { type Piece, Pieces } from "./pieces.ts";
import { Recorder, type RecordingOptions, TargetStateError } from "./recorder.ts";

/** What a {@linkcode RecordingVa} has at an address. */
export interface RecordedBacking<M> {
  /** What is mapped; `null` for private memory. */
  readonly mappable: M | null;
  /** Where in `mappable` it starts, in bytes; 0 for private memory. */
  readonly fileOffset: number;
  /** Whether it may be written. */
  readonly writable: boolean;
  /** The policy it was mapped with. */
  readonly policy: MemoryPolicy | undefined;
  /** Whether what is written is the mapping's own. */
  readonly copyOnWrite: boolean;
  /** Which `map` call made it: 1 for the first. Private memory keeps its contents as long as this stays the same. */
  readonly generation: number;
  /** How far into what that call mapped it starts, in bytes: memory in no file keeps that wherever it is moved. */
  readonly memoryOffset: number;
}

/** A range of a {@linkcode RecordingVa} that is backed. */
export interface RecordedVaRange<M> extends RecordedBacking<M> {
  /** The addresses inside the reservation, in bytes. */
  readonly range: MemoryRange;
}

/** What a {@linkcode RecordingVa} can be given. */
export interface RecordingVaOptions extends RecordingOptions {
  /** The host address of GPA 0. Nothing is there; it is never accessed. Defaults to 0x10_0000_0000. */
  base?: number;
  /** How many backed ranges it can hold. Unlimited when left out. */
  limit?: number;
}

/** Memory that is in no file. Its bytes are made when somebody looks. */
interface OwnBytes {
  readonly length: number;
  readonly fileOffset: number;
  buffer: ArrayBuffer | null;
}

/**
 * A host address range without memory: it keeps what would be mapped where, logs each call, and is strict about its
 * arguments. It can stand in for a `VaMapper`: private memory and stand-in files (`standIn`) have contents, so guest
 * memory can be read and written. A lock is a copy there, which is written back when it is released, and nothing else
 * is at its host addresses.
 *
 * @example Usage
 * ```ts
 * import { RecordingVa } from "membacking/testing";
 *
 * const va = new RecordingVa<string>(0x10000);
 * va.map(0x1000, 0x4000, "disk", 0x8000, true, undefined);
 * va.protect(0x2000, 0x3000, false);
 *
 * console.assert(va.at(0x2000)?.fileOffset === 0x9000);
 * console.assert(va.at(0x2000)?.writable === false && va.at(0x3000)?.writable === true);
 * ```
 */
export class RecordingVa<M = unknown> implements VaTarget<M> {
  /** The name in the log and in errors: "host memory" unless another was given. */
  readonly name: string;
  /** The host address of GPA 0. */
  readonly base: number;
  /** The length of the reservation in bytes. */
  readonly length: number;
  /** Every call, oldest first, the failed ones included. */
  readonly calls: RecordedCall[];
  /** The plan of failures it follows. */
  readonly faults: Faults;
  readonly #recorder: Recorder;
  readonly #pieces = new Pieces<RecordedBacking<M>>();
  readonly #limit: number;
  /** Memory that is in no file, by the call of `map` that made it. */
  readonly #own = new Map<number, OwnBytes>();
  readonly #parked = new Map<HostMemory, Pieces<RecordedBacking<M>>>();
  #generation = 0;

  /** Makes a reservation of `length` bytes with nothing in it. */
  constructor(length: number, options: RecordingVaOptions = {}) {
    this.name = options.name ?? "host memory";
    this.base = options.base ?? 0x10_0000_0000;
    this.length = new MemoryRange(0, length).length;
    this.#limit = options.limit ?? Infinity;
    this.#recorder = new Recorder(options);
    this.calls = this.#recorder.calls;
    this.faults = this.#recorder.faults;
  }

  /** How many more backed ranges it can hold. */
  get spareMappings(): number {
    return this.#limit - this.#pieces.list.length;
  }

  /** What is mapped now, in the pieces it was mapped in or cut into, lowest address first. */
  get ranges(): readonly RecordedVaRange<M>[] {
    return this.#pieces.list.map(({ start, end, value }) => ({ range: new MemoryRange(start, end), ...value }));
  }

  /** What is mapped at `address`, with the offset of that very address; `null` where nothing is. */
  at(address: number): RecordedBacking<M> | null {
    const piece = this.#pieces.at(address);
    return piece === undefined ? null : cut(piece, address, address + 1).value;
  }

  /** The bytes of what is mapped at `address`: of stand-in files and of private memory. Others have none here. */
  bytesAt(address: number): HostBytes | undefined {
    const piece = this.#pieces.at(address);
    if (piece === undefined) return undefined;
    const { mappable, fileOffset, copyOnWrite, generation, memoryOffset } = piece.value;
    const file = mappable instanceof Mappable ? fileOf(mappable).bytes : null;
    if (mappable !== null && file === null) return undefined;
    if (file !== null && !copyOnWrite) return { buffer: file, offset: fileOffset + address - piece.start };
    const own = this.#own.get(generation);
    if (own === undefined) return undefined;
    own.buffer ??= file === null
      ? new ArrayBuffer(own.length)
      : file.slice(own.fileOffset, own.fileOffset + own.length);
    return { buffer: own.buffer, offset: memoryOffset + address - piece.start };
  }

  /**
   * Replaces `[start, end)` by a part of `mappable`, or by fresh private memory for `null`.
   *
   * @throws {TargetStateError} If the range is empty or beyond the reservation, the offset is unaligned, or the limit is reached.
   * @throws {RangeError} If `start` or `end` is unaligned.
   */
  map(
    start: number,
    end: number,
    mappable: M | null,
    fileOffset: number,
    writable: boolean,
    policy: MemoryPolicy | undefined,
    copyOnWrite: boolean = false,
  ): void {
    const range = this.#range(start, end);
    this.#run("map", range, {
      writable,
      act: () => {
        if (!Number.isSafeInteger(fileOffset) || fileOffset < 0 || fileOffset % PAGE_SIZE !== 0) {
          throw new TargetStateError(`Cannot map the file offset ${hex(fileOffset)} at ${range}`);
        }
        const generation = ++this.#generation;
        const offset = mappable === null ? 0 : fileOffset;
        if (mappable === null || copyOnWrite) {
          this.#own.set(generation, { length: end - start, fileOffset: offset, buffer: null });
        }
        this.#replace(range, [{
          start,
          end,
          value: { mappable, fileOffset: offset, writable, policy, copyOnWrite, generation, memoryOffset: 0 },
        }]);
      },
      destroy: () => this.#replace(range, []),
    });
  }

  /**
   * Changes the protection of `[start, end)`. When told to fail with `"old-state-destroyed"`, it changes the first page
   * only: nothing that changes a protection ever takes the memory away.
   *
   * @throws {TargetStateError} If a part of it is not mapped, or if the limit is reached.
   */
  protect(start: number, end: number, writable: boolean): void {
    const range = this.#range(start, end);
    this.#run("protect", range, {
      writable,
      act: () => this.#protect(range, writable),
      destroy: () => this.#protect(MemoryRange.of(start, PAGE_SIZE), writable),
    });
  }

  /** Sets private memory to zeros. Not logged: it is no call that changes what is mapped. */
  empty(start: number, end: number): void {
    for (const piece of this.#pieces.overlapping(start, end)) {
      const own = this.#own.get(piece.value.generation);
      if (own === undefined || own.buffer === null) continue;
      const [from, to] = [Math.max(start, piece.start), Math.min(end, piece.end)];
      new Uint8Array(own.buffer, piece.value.memoryOffset + from - piece.start, to - from).fill(0);
    }
  }

  /** Takes away whatever is mapped in `[start, end)`. */
  remove(start: number, end: number): void {
    const range = this.#range(start, end);
    const act = () => this.#replace(range, []);
    this.#run("remove", range, { act, destroy: act });
  }

  /**
   * Puts what is in `[start, end)` where it does not show, as `memory` from `offset` on, and leaves an empty mapping. What
   * is parked already stays as it is. When told to fail with `"old-state-destroyed"`, it parks the first page only.
   */
  park(start: number, end: number, memory: HostMemory, offset: number): void {
    const range = this.#range(start, end);
    this.#run("park", range, {
      act: () => this.#park(range, memory, offset),
      destroy: () => this.#park(MemoryRange.of(start, PAGE_SIZE), memory, offset),
    });
  }

  /**
   * Puts what is parked of `memory` back into `[start, end)`, and changes the protection. Where nothing is there
   * afterwards, fresh private memory is. When told to fail with `"old-state-destroyed"`, nothing is in the range, and what
   * is parked stays so.
   */
  restore(start: number, end: number, memory: HostMemory, offset: number, writable: boolean): void {
    const range = this.#range(start, end);
    const parked = this.#parkedOf(memory);
    this.#run("restore", range, {
      writable,
      act: () => {
        const back = parked.overlapping(offset, offset + end - start).map((piece) =>
          cut(piece, offset, offset + end - start)
        );
        for (const piece of back) {
          const moved = { start: piece.start - offset + start, end: piece.end - offset + start, value: piece.value };
          this.#replace(new MemoryRange(moved.start, moved.end), [moved]);
          parked.remove(piece.start, piece.end, cut);
        }
        for (const gap of this.#pieces.gaps(start, end)) {
          const value = { ...EMPTY, writable, generation: ++this.#generation };
          this.#own.set(this.#generation, { length: gap.end - gap.start, fileOffset: 0, buffer: null });
          this.#replace(new MemoryRange(gap.start, gap.end), [{ ...gap, value }]);
        }
        this.#protect(range, writable);
      },
      destroy: () => {
        for (const piece of parked.overlapping(offset, offset + end - start)) {
          const gone = cut(piece, offset, offset + end - start);
          this.#replace(new MemoryRange(gone.start - offset + start, gone.end - offset + start), []);
        }
      },
    });
  }

  /** Forgets what is parked of `memory` at the offsets `[start, end)`. */
  discard(memory: HostMemory, start: number, end: number): void {
    const act = () => {
      this.#parkedOf(memory).remove(start, end, cut);
      if (this.#parkedOf(memory).list.length === 0) this.#parked.delete(memory);
    };
    this.#run("discard", new MemoryRange(start, end), { act, destroy: act });
  }

  /** How many bytes are parked. */
  get parkedBytes(): number {
    const pieces = [...this.#parked.values()].flatMap(({ list }) => list);
    return pieces.reduce((sum, { start, end }) => sum + end - start, 0);
  }

  #parkedOf(memory: HostMemory): Pieces<RecordedBacking<M>> {
    const known = this.#parked.get(memory) ?? new Pieces();
    this.#parked.set(memory, known);
    return known;
  }

  #park(range: MemoryRange, memory: HostMemory, offset: number): void {
    const parked = this.#parkedOf(memory);
    const shift = offset - range.start;
    for (const gap of parked.gaps(offset, offset + range.length)) {
      for (const piece of this.#pieces.overlapping(gap.start - shift, gap.end - shift)) {
        const { start, end, value } = cut(piece, gap.start - shift, gap.end - shift);
        join(parked, start + shift, end + shift, value);
        this.#replace(new MemoryRange(start, end), [{
          start,
          end,
          value: { ...value, generation: ++this.#generation },
        }]);
      }
    }
  }

  #run(
    method: CallMethod,
    range: MemoryRange,
    { writable, act, destroy }: { writable?: boolean; act(): void; destroy(): void },
  ): void {
    const call = { target: this.name, method, range, ...(writable !== undefined && { writable }) };
    this.#recorder.run(call, { act, destroy });
  }

  #range(start: number, end: number): MemoryRange {
    const range = new MemoryRange(start, end);
    if (range.isEmpty || end > this.length) {
      throw new TargetStateError(`${range} is empty or beyond the reservation of ${hex(this.length)} bytes`);
    }
    return range;
  }

  #protect(range: MemoryRange, writable: boolean): void {
    const pieces = this.#pieces.overlapping(range.start, range.end).map((piece) => cut(piece, range.start, range.end));
    const backed = pieces.reduce((sum, piece) => sum + piece.end - piece.start, 0);
    if (backed < range.length) throw new TargetStateError(`Cannot protect ${range}: it is not all mapped`);
    this.#replace(range, pieces.map((piece) => ({ ...piece, value: { ...piece.value, writable } })));
  }

  /** Puts `inside` into `range` and keeps what the pieces at its edges have outside it. */
  #replace(range: MemoryRange, inside: Piece<RecordedBacking<M>>[]): void {
    const there = this.#pieces.overlapping(range.start, range.end);
    const first = there[0];
    const last = there.at(-1);
    const pieces = [...inside];
    if (first && first.start < range.start) pieces.unshift(cut(first, first.start, range.start));
    if (last && last.end > range.end) pieces.push(cut(last, range.end, last.end));
    if (this.#pieces.list.length - there.length + pieces.length > this.#limit) {
      throw new TargetStateError(`Cannot change ${range}: all ${this.#limit} mappings are in use`);
    }
    this.#pieces.replace(range.start, range.end, pieces);
  }
}

const EMPTY = { mappable: null, fileOffset: 0, policy: undefined, copyOnWrite: false, memoryOffset: 0 } as const;

/** Adds `[start, end)` with `value` to `pieces`, to the piece below it where that is the same memory. */
function join<M>(pieces: Pieces<RecordedBacking<M>>, start: number, end: number, value: RecordedBacking<M>): void {
  const below = start === 0 ? undefined : pieces.at(start - 1);
  const goesOn = below !== undefined && below.value.generation === value.generation &&
    below.value.writable === value.writable;
  const from = goesOn ? below.start : start;
  pieces.replace(from, end, [{ start: from, end, value: goesOn ? below.value : value }]);
}

/** The part of `piece` inside `[start, end)`. */
function cut<M>(piece: Piece<RecordedBacking<M>>, start: number, end: number): Piece<RecordedBacking<M>> {
  const from = Math.max(start, piece.start);
  const fileOffset = piece.value.mappable === null ? 0 : piece.value.fileOffset + from - piece.start;
  const memoryOffset = piece.value.memoryOffset + from - piece.start;
  return { start: from, end: Math.min(end, piece.end), value: { ...piece.value, fileOffset, memoryOffset } };
}
