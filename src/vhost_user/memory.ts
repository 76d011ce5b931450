import { fileOf, type Mappable } from "../../ffi/files/mappable.ts";
import type { OpenFile } from "../../ffi/files/open_file.ts";
import { DisposedError, MappingError } from "../core/errors.ts";
import { hex } from "../core/hex.ts";
import { MemoryRange } from "../core/memory_range.ts";
import type { Span } from "../core/span.ts";
import type { DmaRequest, DmaTarget } from "../targets/targets.ts";
import type { ConnectionState } from "./connection.ts";
import { DirtyLog } from "./dirty_log.ts";
import { VhostUserError } from "./errors.ts";
import { linkOf, type VhostUserFrontend } from "./frontend.ts";
import type { BackendLink, MemoryLink } from "./link.ts";
import { changeTable, covers, entryAt, type Run, type TableChange } from "./memory_table.ts";
import { exchangeTable } from "./table_exchange.ts";

/** One entry of a back end's memory table. */
export interface VhostUserRegion {
  /** The GPA range, in bytes. */
  readonly range: MemoryRange;
  /** The address that the back end knows its first byte by, besides the GPA. */
  readonly userAddress: number;
  /** Where in its file it begins, in bytes. */
  readonly fileOffset: number;
  /** The file, in words. */
  readonly backing: string;
}

/** What the manager has told of one mapping that the back end is given. */
interface Piece extends Run<OpenFile> {
  /** A handle of the file. */
  readonly mappable: Mappable;
}

type Pieces = ReadonlyMap<number, Piece>;

/** A request that was announced: what there will be after it, and which calls are still to come. */
interface Announced {
  readonly next: Pieces;
  /** By start, those that take away as -1 - start. */
  readonly calls: Set<number>;
  /** The change it makes of a table; `null` where there was none to be changed. */
  readonly change: TableChange<OpenFile> | null;
  readonly table: readonly Run<OpenFile>[];
  sent: boolean;
}

/**
 * Keeps the memory table of a vhost-user back end equal to the RAM that the guest sees: a DMA target, for
 * `RegionManager.addDmaTarget`.
 *
 * The table has all RAM that is visible and has a file open for writing, whether the guest may write it just now or not.
 * Device memory and private memory are not in it; `addDmaTarget(memory, { needsFd: true })` refuses private memory
 * instead. Each change is sent in the middle of the request that makes it, and the thread waits for the back end to
 * acknowledge it, up to the front end's deadline:
 *
 * - A back end that refuses fails the request, which is undone.
 * - A back end that does not answer fails it too and is cut off. Memory that it may still use is then not taken from it
 *   (`VhostUserError`, `"hung"`) until it closes its socket, as its end does, or the front end is disposed.
 * - A back end that is gone fails nothing. Its successor gets the table as it is by then (`reconnect`).
 *
 * A vring whose memory goes is suspended, and taken up again when memory is back at its addresses.
 *
 * @example Usage
 * ```ts ignore
 * const frontend = await VhostUserFrontend.connect("/run/disk.sock");
 * using memory = new VhostUserMemory(frontend);
 * using _attached = guest.regions.addDmaTarget(memory);
 * console.log(memory.table);
 * ```
 */
export class VhostUserMemory implements DmaTarget, Disposable {
  /** A name for messages. */
  readonly name: string;
  readonly #link: BackendLink;
  /** What the manager has told and the back end is given, by start. */
  #pieces = new Map<number, Piece>();
  /** What it is not given, as ends by start: there may be thousands of mappings in a DAX window. */
  readonly #others = new Map<number, number>();
  #announced: Announced | null = null;
  /** What the back end has; after it was cut off, what it may have. */
  #table: readonly Run<OpenFile>[] = [];
  #userBase = 0;
  /** Memory that may have been written without a mark, to be reported once. */
  #unlogged: Span[] = [];
  /** Marks of a log that was given up for a longer one. */
  #carried: Span[] = [];
  /** Whether somebody wants to know what is written. */
  #isAsked = false;
  #disposed = false;

  /** Gives the back end of `frontend` its memory. A front end has one of these. */
  constructor(frontend: VhostUserFrontend) {
    this.#link = linkOf(frontend);
    this.name = `memory of ${frontend.name}`;
    if (this.#link.memory !== null) throw new TypeError(`${frontend.name} has its memory already`);
    const self = (): VhostUserMemory => this;
    this.#link.memory = {
      get userBase() {
        return self().#userBase;
      },
      holds: (gpa, length) => entryAt(this.#table, gpa, length) !== undefined,
      readUint16: (gpa) => this.#readUint16(gpa),
      introduce: () => {
        this.#table = [];
        this.#settle(this.#pieces);
      },
      lose: () => this.#lose(),
    } satisfies MemoryLink;
  }

  /** The table as the back end has it, lowest address first; empty while there is no back end. */
  get table(): readonly VhostUserRegion[] {
    if (this.#link.connection.state === "gone") return [];
    return this.#table.map(({ start, end, file, fileOffset }) => ({
      range: new MemoryRange(start, end),
      userAddress: this.#userBase + start,
      fileOffset,
      backing: file.label,
    }));
  }

  /** Whether the back end logs what it writes. `takeDirty` starts that. */
  get isLogging(): boolean {
    return this.#link.log !== null;
  }

  /**
   * Announces a request, or its undo. Nothing is sent yet.
   *
   * @throws {LimitError} If the back end's table has not enough room for it.
   * @throws {VhostUserError} `"hung"` if it takes memory away that a back end which was cut off may still use.
   */
  prepareDma(change: { readonly unmaps: readonly MemoryRange[]; readonly maps: readonly DmaRequest[] }): undefined {
    if (this.#disposed) return;
    this.#announced = null;
    const unmaps = change.unmaps.filter(({ start }) => this.#pieces.has(start));
    const maps = change.maps.filter(isGiven);
    if (unmaps.length + maps.length === 0) return;
    const next = new Map(this.#pieces);
    const calls = new Set<number>();
    for (const { start } of unmaps) {
      next.delete(start);
      calls.add(-1 - start);
    }
    for (const request of maps) {
      this.#checkBase(request, next.size);
      next.set(request.range.start, pieceOf(request));
      calls.add(request.range.start);
    }
    const { connection, ready, rules } = this.#link;
    const table = this.#table;
    if (connection.state === "cut off") this.#keepFrom(runsOf(next));
    const planned = ready && connection.state === "open" ? changeTable(table, runsOf(next), rules) : null;
    this.#announced = { next, calls, change: planned, table, sent: false };
  }

  /**
   * Gives the back end a mapping.
   *
   * @throws {LimitError} If its table has not enough room.
   * @throws {VhostUserError} If it refuses, or has just been cut off.
   * @throws {MappingError} If the mapping overlaps one it has.
   */
  mapDma(request: DmaRequest): undefined {
    if (this.#disposed) throw new DisposedError("VhostUserMemory");
    const { range } = request;
    if (!isGiven(request)) return void this.#others.set(range.start, range.end);
    const added = pieceOf(request);
    for (const { start, end, file, fileOffset } of this.#pieces.values()) {
      // An undo that does not know whether something was taken away gives it again.
      if (start === added.start && end === added.end && file === added.file && fileOffset === added.fileOffset) return;
      if (start < range.end && range.start < end) {
        throw new MappingError(`${this.name} has ${new MemoryRange(start, end)} already`, range);
      }
    }
    this.#checkBase(request, this.#pieces.size);
    this.#carryOut(range.start, () => new Map(this.#pieces).set(range.start, added));
    this.#pieces.set(range.start, { ...added, mappable: added.mappable.clone() });
  }

  /**
   * Takes a mapping away from the back end.
   *
   * @throws {VhostUserError} If it refuses, or has just been cut off, or was before and may still use the memory.
   * @throws {MappingError} If `range` is not exactly one mapping.
   */
  unmapDma(range: MemoryRange): undefined {
    if (this.#disposed) return;
    const piece = this.#pieces.get(range.start);
    if (piece === undefined && this.#others.get(range.start) === range.end) {
      this.#others.delete(range.start);
      return;
    }
    if (piece === undefined || piece.end !== range.end) {
      throw new MappingError(`${this.name} has no mapping at exactly ${range}`, range);
    }
    this.#carryOut(-1 - range.start, () => {
      const next = new Map(this.#pieces);
      next.delete(range.start);
      return next;
    });
    this.#pieces.delete(range.start);
    piece.mappable[Symbol.dispose]();
  }

  /**
   * Reports what the back end has written since the last time, superset included: without a log (LOG_SHMFD) that is all
   * it has. The first call starts the log, and reports everything. Blocks for that.
   */
  takeDirty(mark: (start: number, end: number) => void): void {
    const link = this.#link;
    const state = link.connection.look();
    this.#isAsked = true;
    // Between its last writes and their marks it may have died.
    if (state === "gone") this.#lose();
    for (const { start, end } of [...this.#carried.splice(0), ...this.#unlogged.splice(0)]) mark(start, end);
    if (state === "gone") return;
    if (state === "open" && link.log !== null) {
      for (const span of this.#table) link.log.take(span, mark);
      return;
    }
    for (const { start, end } of this.#table) mark(start, end);
    if (state !== "open" || !link.canLog || !link.ready) return;
    const log = new DirtyLog(2 * Math.max(2 ** 32, this.#end(this.#table)));
    try {
      link.startLog(log);
    } catch (error) {
      log[Symbol.dispose]();
      // Without a log, all is reported each time. A back end that fell silent has been cut off, which whoever asks it
      // for something next is told.
      if (!(error instanceof VhostUserError)) throw error;
    }
  }

  /** Has the back end stop logging what it writes, which costs it time. Blocks. Does nothing if it does not log. */
  stopLogging(): void {
    const { log } = this.#link;
    if (log === null) return;
    this.#link.stopLog();
    log[Symbol.dispose]();
  }

  /** Forgets everything. Detach it from its manager first: what is still attached stays with the back end. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#link.memory = null;
    this.#link.log?.[Symbol.dispose]();
    this.#link.log = null;
    for (const { mappable } of this.#pieces.values()) mappable[Symbol.dispose]();
    this.#pieces.clear();
  }

  /** Has the back end follow one call of the manager: with all of its request at once, if that was announced. */
  #carryOut(call: number, alone: () => Pieces): void {
    const announced = this.#announced;
    // What is taken away unannounced, and was announced to be given, is given anew (after a discard, say).
    const isRenewed = call < 0 && announced?.calls.has(-1 - call);
    if (announced === null || !(announced.calls.delete(call) || isRenewed)) {
      this.#announced = null;
      return this.#settle(alone());
    }
    if (!announced.sent) {
      this.#settle(announced.next, announced);
      announced.sent = true;
    }
    if (announced.calls.size === 0) this.#announced = null;
  }

  /** Has the back end's table cover what of `pieces` it is given, or leaves it as it was and throws. */
  #settle(pieces: Pieces, announced: Announced | null = null): void {
    const link = this.#link;
    const { connection } = link;
    const state = (): ConnectionState => connection.state; // which changes under way
    if (state() === "gone") this.#lose();
    if (!link.ready || state() === "gone") return;
    if (state() === "cut off") return this.#keepFrom(runsOf(pieces));
    const known = announced?.table === this.#table ? announced.change : null;
    const change = known ?? changeTable(this.#table, runsOf(pieces), link.rules);
    if (change.removed.length === 0 && change.added.length === 0) return;
    this.#lengthenLog(this.#end(change.table));
    const before = this.#table;
    const files = new Map<OpenFile, Mappable>();
    for (const { file, mappable } of [...this.#pieces.values(), ...pieces.values()]) files.set(file, mappable);
    try {
      exchangeTable(link, change, {
        before,
        userBase: this.#userBase,
        fdOf: (file) => files.get(file)?.fd ?? file.fd,
      });
      this.#table = change.table;
    } catch (error) {
      // One that was cut off may have any of it.
      if (state() === "cut off") this.#table = [...before, ...change.added];
      throw error;
    } finally {
      if (state() === "gone") this.#lose();
      else if (state() === "open") this.#resume();
    }
    for (const span of change.removed) link.log?.take(span, (start, end) => this.#carried.push({ start, end }));
  }

  /** Vrings that cannot be resumed now cost the back end its connection, and not the request. */
  #resume(): void {
    try {
      this.#link.resume();
    } catch (error) {
      if (!(error instanceof VhostUserError)) throw error;
    }
  }

  /** Does not let go of memory that a back end may still use. */
  #keepFrom(wanted: readonly Run<OpenFile>[]): void {
    const taken = runsOf(this.#pieces).filter((run) => !covers(wanted, run));
    const isHeld = ({ start, end }: Span) => this.#table.some((entry) => entry.start < end && start < entry.end);
    if (!taken.some(isHeld)) return;
    if (this.#link.connection.awaitEnd() === "gone") return this.#lose();
    const { error } = this.#link.connection;
    throw new VhostUserError(
      "hung",
      error?.request ?? "",
      `The back end of ${this.name} was cut off and may still use memory that is to be taken away; end its process, or ` +
        `dispose its front end`,
      { cause: error },
    );
  }

  #lose(): void {
    if (this.#isAsked) this.#unlogged.push(...this.#table.map(({ start, end }) => ({ start, end })));
    this.#table = [];
  }

  /** A log has a bit for each page of the table. */
  #lengthenLog(end: number): void {
    const { log } = this.#link;
    if (log === null || end <= log.end) return;
    const longer = new DirtyLog(2 * end);
    try {
      this.#link.startLog(longer);
    } catch (error) {
      longer[Symbol.dispose]();
      throw error;
    }
    for (const span of this.#table) log.take(span, (start, end) => this.#carried.push({ start, end }));
    log[Symbol.dispose]();
  }

  #end(runs: readonly Span[]): number {
    return runs.reduce((most, { end }) => Math.max(most, end), 0);
  }

  #readUint16(gpa: number): number {
    for (const { start, end, mappable, fileOffset } of this.#pieces.values()) {
      if (gpa < start || gpa + 2 > end) continue;
      const bytes = new Uint8Array(2);
      mappable.read(fileOffset + gpa - start, bytes);
      return new DataView(bytes.buffer).getUint16(0, true);
    }
    throw new MappingError(`${this.name} has nothing at ${hex(gpa)}`, MemoryRange.bounding(gpa, gpa + 2));
  }

  /** All GPAs are at one distance from their host addresses, so one number tells the user addresses. */
  #checkBase({ hva, range }: DmaRequest, others: number): void {
    const base = hva - range.start;
    if (others > 0 && base !== this.#userBase) {
      throw new MappingError(`${this.name} is attached to one manager and cannot be attached to another`, range);
    }
    this.#userBase = base;
  }
}

/** Whether a back end is given it. They map what they are given for writing, so they are given nothing else. */
function isGiven(request: DmaRequest): request is DmaRequest & { readonly mappable: Mappable } {
  return request.type === "ram" && request.mappable !== null && request.mappable.writable;
}

function pieceOf(request: DmaRequest & { readonly mappable: Mappable }): Piece {
  const { range: { start, end }, mappable, fileOffset } = request;
  return { start, end, fileOffset, file: fileOf(mappable), mappable };
}

/** What a back end is given, in ascending order. */
function runsOf(pieces: Pieces): Run<OpenFile>[] {
  return Array.from(pieces.values(), ({ start, end, file, fileOffset }) => ({ start, end, file, fileOffset }))
    .sort((a, b) => a.start - b.start);
}
