import type { OpenFile } from "../../ffi/files/open_file.ts";
import { fileOf, type Mappable } from "../../ffi/files/mappable.ts";
import { checkSignal, onAbort } from "../core/abort.ts";
import { DisposedError, MappingError, MembackingError, MemoryLockedError } from "../core/errors.ts";
import { LockTable } from "../core/lock_table.ts";
import { MemoryRange } from "../core/memory_range.ts";
import { fragments } from "../core/map/overlap.ts";
import type { Mapping, Piece, Region } from "../core/map/region.ts";
import type { Plan } from "../core/plan/plan.ts";
import type { Entry } from "../core/range_map.ts";
import { fewSpans, type Span } from "../core/span.ts";
import type { State } from "../core/map/state.ts";
import type { HostBytes, VaTarget } from "../core/targets.ts";
import { pieceAt, piecesIn } from "../core/map/view.ts";
import type { Report } from "../targets/report.ts";
import { mappableOf, sharedFileOf } from "./file_backing.ts";
import type { AccessMap, Backed } from "./access_map.ts";
import { HeldLocks, type Lock } from "./held_locks.ts";
import type { LockedMemory } from "./locked_memory.ts";
import { type MemoryPiece, memoryPiece } from "./memory_piece.ts";
import { readOnlyView, type ViewPart } from "./read_only_view.ts";
import type { WriteMarks } from "./write_marks.ts";

/** Addresses that were locked are remembered as this many spans at most. */
const REMEMBERED = 8;

/** The memory map as `GuestMemory` sees it, and the locks on it. */
export class MemoryLocks implements AccessMap {
  readonly #va: VaTarget<Mappable>;
  readonly #state: () => State;
  readonly #check: () => void;
  readonly #table = new LockTable();
  /** The locks among them whose holders may write. */
  readonly #writers = new LockTable();
  /** The locks among them that other threads and processes hold. */
  readonly #foreign = new LockTable();
  /** Clients that were cut off in the middle of an access: whether each may still be at it. */
  readonly #strays = new Set<() => boolean>();
  readonly #held: HeldLocks<Lock>;
  /** All of host memory, made at the first access. A second one would cost another garbage collection. */
  #host: ArrayBuffer | undefined;
  /** Where there ever was a lock, roughly. */
  #everLocked: readonly Span[] = [];
  /** The regions being torn down, and by how many callers. */
  readonly #closing = new Map<Region, number>();
  readonly #waiting = new Set<() => void>();
  /** How many wait for a release, whatever of. */
  #awaiting = 0;
  /** Is told when somebody begins or ceases to wait for a release: what other threads have released until then is not known. */
  onAwaiting: (() => void) | null = null;
  /** Is told when a region begins or ceases to be torn down. */
  onClosing: ((region: Region) => void) | null = null;
  /** Where writes are marked, `null` while nobody tracks them. */
  marks: WriteMarks | null = null;

  /** `check` throws while memory is being changed and once the manager is gone. */
  constructor(va: VaTarget<Mappable>, state: () => State, check: () => void, report: Report) {
    this.#va = va;
    this.#state = state;
    this.#check = check;
    this.#held = new HeldLocks((lock) => this.#released(lock), report);
  }

  get length(): number {
    return this.#va.length;
  }

  get base(): number {
    return this.#va.base;
  }

  get hasAddresses(): boolean {
    return this.#va.view !== undefined;
  }

  bytesAt(gpa: number): HostBytes {
    if (this.#va.view === undefined) {
      const bytes = this.#va.bytesAt?.(gpa);
      if (bytes === undefined) throw new MembackingError(NO_MEMORY);
      return bytes;
    }
    // SAFETY: the manager keeps the reservation for as long as it lives, and every access is checked first.
    this.#host ??= this.#va.view(0, this.#va.length);
    return { buffer: this.#host, offset: gpa };
  }

  find(gpa: number): Backed | undefined {
    const entry = this.#entryAt(gpa);
    if (entry === undefined) return undefined;
    const { start, end, value: { mapping, writable } } = entry;
    const mappable = sharedFileOf(mapping);
    const file = mappable !== null && fileOf(mappable).truncatable ? { mappable, offset: start + mapping.delta } : null;
    return { start, end, writable, file };
  }

  piece(gpa: number): MemoryPiece | null {
    const entry = this.#entryAt(gpa);
    return entry === undefined ? null : memoryPiece(entry, this.#va.base);
  }

  pieces(start: number, end: number): IterableIterator<MemoryPiece> {
    this.#check();
    const { base } = this.#va;
    const state = this.#state();
    const pieces = piecesIn(state, start, end);
    const there = state.damage.lost.size === 0
      ? pieces
      : pieces.filter((piece) => !state.damage.lost.overlaps(piece.start, piece.end));
    return there.values().map((piece) => memoryPiece(piece, base));
  }

  /** What backs `gpa`, as far as it is as it should be. */
  #entryAt(gpa: number): Entry<Piece> | undefined {
    this.#check();
    const state = this.#state();
    const entry = pieceAt(state, gpa);
    if (entry === undefined || state.damage.lost.size === 0) return entry;
    let { start, end } = entry;
    // What an undo could not put back may be anything; what is around it is as it was.
    for (const lost of state.damage.lost.overlapping(start, end)) {
      if (gpa < lost.start) end = Math.min(end, lost.start);
      else if (gpa >= lost.end) start = lost.end;
      else return undefined;
    }
    return { start, end, value: entry.value };
  }

  #view(start: number, end: number): ArrayBuffer {
    if (this.#va.view === undefined) throw new MembackingError(NO_MEMORY);
    return this.#va.view(start, end);
  }

  lock(range: MemoryRange, pieces: readonly Backed[], write: boolean): LockedMemory {
    const { start, end } = range;
    const state = this.#state();
    for (const { file, start, end } of pieces) {
      if (file === null) continue;
      throw new MappingError(
        `This memory cannot be locked, since ${fileOf(file.mappable).whyUnsteady}`,
        new MemoryRange(start, end),
      );
    }
    for (const { value: region } of state.visible.overlapping(start, end)) {
      if (this.#closing.has(region)) throw new DisposedError(`Region "${region.name}"`, "is being torn down");
    }
    if (!this.hasAddresses) return this.#lockCopy(range, write);
    const { buffer, alias } = pieces.every(({ writable }) => writable)
      ? { buffer: this.#view(start, end), alias: undefined }
      : readOnlyView(piecesIn(state, start, end).map(viewPart), range, () => this.#view(start, end));
    const lock = { start, end, write };
    const locked = this.#held.hold(range, lock, buffer, alias);
    this.#add(lock);
    return locked;
  }

  /** Where memory has no addresses, a lock is a copy, which is written back when it is released. */
  #lockCopy(range: MemoryRange, write: boolean): LockedMemory {
    const { start, end } = range;
    const copy = new Uint8Array(range.length);
    const each = (act: (bytes: Uint8Array, at: number) => void) => {
      for (const piece of piecesIn(this.#state(), start, end)) {
        const { buffer, offset } = this.bytesAt(piece.start);
        act(new Uint8Array(buffer, offset, piece.end - piece.start), piece.start - start);
      }
    };
    each((bytes, at) => copy.set(bytes, at));
    const back = () => each((bytes, at) => bytes.set(copy.subarray(at, at + bytes.length)));
    const lock = { start, end, write };
    const locked = this.#held.hold(range, lock, copy.buffer, undefined, write ? back : undefined);
    this.#add(lock);
    return locked;
  }

  /**
   * Throws if a step of the plan would change host memory that is locked.
   *
   * @throws {MemoryLockedError} Naming the lock.
   */
  check({ steps }: Plan): void {
    if (this.#table.isEmpty) return;
    for (const step of steps) if (step.kind === "host") this.checkSpan(step);
  }

  /**
   * Throws if a part of a span is locked.
   *
   * @throws {MemoryLockedError} Naming the lock.
   */
  checkSpan({ start, end }: Span): void {
    const conflict = this.#table.conflict(start, end);
    if (conflict !== undefined) throw new MemoryLockedError(new MemoryRange(conflict.start, conflict.end));
  }

  /**
   * Refuses new locks on `regions`, waits until the old ones are gone, and calls `then` before new ones are possible.
   * Aborting allows new ones again.
   */
  async drain(regions: readonly Region[], signal: AbortSignal | undefined, then: () => void): Promise<void> {
    checkSignal(signal);
    const isLocked = ({ start, end }: Span) => this.#table.conflict(start, end) !== undefined;
    for (const region of regions) this.#closing.set(region, (this.#closing.get(region) ?? 0) + 1);
    try {
      for (const region of regions) this.onClosing?.(region);
      while (regions.some((region) => fragments(this.#state().visible, region).some(isLocked))) {
        await this.#nextRelease(signal);
        signal?.throwIfAborted();
      }
      then();
    } finally {
      for (const region of regions) {
        const others = (this.#closing.get(region) ?? 1) - 1;
        if (others === 0) this.#closing.delete(region);
        else this.#closing.set(region, others);
        this.onClosing?.(region);
      }
    }
  }

  /** What is locked. */
  get spans(): readonly Span[] {
    return this.#table.entries();
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
    return this.#closing.size > 0 || this.#awaiting > 0;
  }

  /** Counts a lock that another thread holds. */
  addForeign(lock: Lock): void {
    this.#foreign.add(lock.start, lock.end);
    this.#add(lock);
  }

  /** Remembers that there have been locks in that span. */
  noteForeign({ start, end }: Span): void {
    if (this.#everLocked.some((span) => span.start <= start && end <= span.end)) return;
    this.#everLocked = fewSpans([...this.#everLocked, { start, end }], REMEMBERED);
  }

  /** Counts it no longer. */
  removeForeign(lock: Lock): void {
    this.#foreign.remove(lock.start, lock.end);
    this.#released(lock);
  }

  /** The first lock on a part of `[start, end)`; of those that other threads and processes hold, where `foreign`. */
  conflict(start: number, end: number, foreign: boolean = false): Span | undefined {
    return (foreign ? this.#foreign : this.#table).conflict(start, end);
  }

  /** Waits until some lock is released, other threads' included. */
  async nextRelease(signal: AbortSignal | undefined): Promise<void> {
    const released = this.#nextRelease(signal);
    this.#awaiting++;
    try {
      this.onAwaiting?.();
      await released;
    } finally {
      this.#awaiting--;
      this.onAwaiting?.();
    }
  }

  /** A client was cut off in the middle of an access, and may write anywhere for as long as `isAtIt`. */
  addStray(isAtIt: () => boolean): void {
    this.#strays.add(isAtIt);
  }

  /** The spans that somebody may be writing outside of accesses that are held off, or may have been until now. */
  writers(): Span[] {
    const spans: Span[] = this.#writers.entries();
    if (this.#strays.size > 0) spans.push({ start: 0, end: this.length });
    for (const isAtIt of [...this.#strays]) if (!isAtIt()) this.#strays.delete(isAtIt);
    return spans;
  }

  /**
   * Detaches the bytes of every lock. What was transferred away cannot be: it is reported as a failure, and the memory
   * in `kept` has to stay as it is, since somebody still looks at it.
   */
  revokeAll(): { failures: unknown[]; kept: Span[] } {
    const result = this.#held.revokeAll();
    this.#wake();
    return result;
  }

  /**
   * Where there ever was a lock, and a little around it: input and output into the bytes of a lock that is gone may
   * still be under way there.
   */
  get everLocked(): readonly Span[] {
    return this.#everLocked;
  }

  /** The locked spans with how often each is locked. */
  entries(): { start: number; end: number; value: number }[] {
    return this.#table.entries();
  }

  /** Where `file` shows. */
  spansOf(file: OpenFile): Span[] {
    return piecesIn(this.#state()).filter(({ value }) => showsFile(value.mapping, file));
  }

  /**
   * Throws if memory of `file` is locked.
   *
   * @throws {MemoryLockedError} Naming the lock.
   */
  checkFile(file: OpenFile): void {
    for (const { start, end } of this.spansOf(file)) {
      const conflict = this.#table.conflict(start, end);
      if (conflict !== undefined) throw new MemoryLockedError(new MemoryRange(conflict.start, conflict.end));
    }
  }

  #add({ start, end, write = false }: Lock): void {
    this.#table.add(start, end);
    if (write) this.#writers.add(start, end);
    this.noteForeign({ start, end });
  }

  #released({ start, end, write = false }: Lock): void {
    // It may have been written after the last look, which is noted before anybody forgets that it was.
    if (write) this.marks?.mark(start, end);
    this.#table.remove(start, end);
    if (write) this.#writers.remove(start, end);
    this.#wake();
  }

  #wake(): void {
    for (const wake of this.#waiting) wake();
  }

  #nextRelease(signal: AbortSignal | undefined): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const wake = () => {
      this.#waiting.delete(wake);
      abort[Symbol.dispose]();
      resolve();
    };
    const abort = onAbort(signal, wake);
    this.#waiting.add(wake);
    return promise;
  }
}

const NO_MEMORY = "This VA target has no memory to look at";

function viewPart({ start, end, value: { mapping, writable } }: Entry<Piece>): ViewPart {
  return { start, end, mappable: sharedFileOf(mapping), fileOffset: start + mapping.delta, writable };
}

function showsFile(mapping: Mapping, file: OpenFile): boolean {
  const mappable = mappableOf(mapping);
  return mappable !== null && fileOf(mappable) === file;
}
