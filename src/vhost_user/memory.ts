import type { OpenFile } from "../../ffi/files/open_file.ts";
import { DisposedError, MappingError, MembackingError } from "../core/errors.ts";
import { hex } from "../core/hex.ts";
import { MemoryRange } from "../core/memory_range.ts";
import type { Span } from "../core/span.ts";
import type { MarkDirty } from "../core/targets.ts";
import type { DmaRequest, DmaTarget } from "../targets/targets.ts";
import type { ConnectionState } from "./connection.ts";
import { VhostUserError } from "./errors.ts";
import { linkOf, type VhostUserFrontend } from "./frontend.ts";
import type { BackendLink, MemoryLink } from "./link.ts";
import { changeTable, covers, entryAt, type Run, type TableChange } from "./memory_table.ts";
import { isGiven, type Piece, pieceAt, pieceOf, type Pieces, runsOf, without, withPiece } from "./pieces.ts";
import { disturbedVrings, notTakenBack, TableExchange } from "./table_exchange.ts";
import type { Vring } from "./vrings.ts";
import { WrittenMemory } from "./written_memory.ts";

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

/** A request that was announced: what there will be after it, and which calls are still to come. */
interface Announced {
  readonly next: Pieces;
  /** By start, those that take away as -1 - start. */
  readonly calls: Set<number>;
  /** The change it makes of a table; `null` where there was none to be changed. */
  readonly change: TableChange<OpenFile> | null;
  readonly table: readonly Run<OpenFile>[];
  /** The exchange that has begun beforehand, if there is one. */
  exchange: Under | null;
  /** Whether the back end has the table that the request leads to. */
  isShown: boolean;
}

/** A change of the table that is under way. */
interface Under {
  readonly exchange: TableExchange;
  readonly change: TableChange<OpenFile>;
  readonly before: readonly Run<OpenFile>[];
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
  /** What the manager has told and the back end is given. */
  #pieces: Pieces = [];
  /** What it is not given, as ends by start: there may be thousands of mappings in a DAX window. */
  readonly #others = new Map<number, number>();
  #announced: Announced | null = null;
  /** What the back end has; after it was cut off, what it may have. */
  #table: readonly Run<OpenFile>[] = [];
  /** What it may have besides, while its table is being changed; `null` while it is not. */
  #underWay: readonly Run<OpenFile>[] | null = null;
  #userBase = 0;
  readonly #written: WrittenMemory;
  #disposed = false;

  /** Gives the back end of `frontend` its memory. A front end has one of these. */
  constructor(frontend: VhostUserFrontend) {
    this.#link = linkOf(frontend);
    this.#written = new WrittenMemory(this.#link);
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
        this.#announced = null;
        this.#table = [];
        this.#show(this.#pieces);
        this.#underWay = null;
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
   * Announces a request, its undo, or, where nothing is in it, that a request which was announced does not come. The back
   * end is told at once where that is all it has to be told, so that several back ends are at work at a time; what comes
   * of it, the first call of the request waits for.
   *
   * @throws {LimitError} If the back end's table has not enough room for it.
   * @throws {VhostUserError} `"hung"` if it takes memory away that a back end which was cut off may still use.
   */
  prepareDma(change: { readonly unmaps: readonly MemoryRange[]; readonly maps: readonly DmaRequest[] }): undefined {
    if (this.#disposed) return;
    this.#takeBack();
    this.#endInterrupted();
    let next = this.#pieces;
    const calls = new Set<number>();
    for (const { start } of change.unmaps) {
      if (pieceAt(next, start) === undefined) continue;
      next = without(next, start);
      calls.add(-1 - start);
    }
    for (const request of change.maps) {
      if (!isGiven(request)) continue;
      this.#checkBase(request, next.length);
      next = withPiece(next, pieceOf(request));
      calls.add(request.range.start);
    }
    if (calls.size === 0) return;
    const { connection, ready, rules } = this.#link;
    const table = this.#table;
    if (connection.state === "cut off") this.#keepFrom(runsOf(next));
    const planned = ready && connection.state === "open" ? changeTable(table, runsOf(next), rules) : null;
    const announced: Announced = { next, calls, change: planned, table, exchange: null, isShown: false };
    this.#announced = announced;
    if (planned === null || planned.removed.length + planned.added.length === 0) return;
    const disturbed = disturbedVrings(this.#link, planned);
    if (disturbed.length > 0 || this.#written.isBeyondLog(planned.table)) return;
    announced.exchange = this.#begin(next, planned, disturbed);
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
    for (const { start, end, file, fileOffset } of this.#pieces) {
      // An undo that does not know whether something was taken away gives it again.
      if (start === added.start && end === added.end && file === added.file && fileOffset === added.fileOffset) return;
      if (start < range.end && range.start < end) {
        throw new MappingError(`${this.name} has ${new MemoryRange(start, end)} already`, range);
      }
    }
    this.#checkBase(request, this.#pieces.length);
    const mappable = added.mappable.clone();
    try {
      this.#become(range.start, withPiece(this.#pieces, { ...added, mappable }));
    } catch (error) {
      mappable[Symbol.dispose]();
      throw error;
    }
  }

  /**
   * Takes a mapping away from the back end.
   *
   * @throws {VhostUserError} If it refuses, or has just been cut off, or was before and may still use the memory.
   * @throws {MappingError} If `range` is not exactly one mapping.
   */
  unmapDma(range: MemoryRange): undefined {
    if (this.#disposed) return;
    const piece = pieceAt(this.#pieces, range.start);
    if (piece === undefined && this.#others.get(range.start) === range.end) {
      this.#others.delete(range.start);
      return;
    }
    if (piece === undefined || piece.end !== range.end) {
      throw new MappingError(`${this.name} has no mapping at exactly ${range}`, range);
    }
    this.#become(-1 - range.start, without(this.#pieces, range.start));
    piece.mappable[Symbol.dispose]();
  }

  /**
   * Reports what the back end has written since the last time, superset included: without a log (LOG_SHMFD) that is all
   * it has. The first call starts the log, and reports everything. Blocks for that.
   */
  takeDirty(mark: MarkDirty): void {
    this.#written.isAsked = true;
    // Between its last writes and their marks it may have died.
    if (this.#link.connection.look() === "gone") this.#lose();
    this.#written.take(this.#table, mark);
  }

  /** Has the back end stop logging what it writes, which costs it time. Blocks. Does nothing if it does not log. */
  stopLogging(): void {
    this.#written.stopLogging();
  }

  /** Forgets everything. Detach it from its manager first: what is still attached stays with the back end. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#link.memory = null;
    this.#link.log?.[Symbol.dispose]();
    this.#link.log = null;
    for (const { mappable } of this.#pieces) mappable[Symbol.dispose]();
    this.#pieces = [];
  }

  /** Has the back end follow one call of the manager, after which there will be `pieces`. */
  #become(call: number, pieces: Pieces): void {
    this.#endInterrupted();
    try {
      this.#carryOut(call, pieces);
    } catch (error) {
      // What else is thrown came from where nothing was expected, such as the end of the stack.
      if (error instanceof MembackingError) this.#underWay = null;
      throw error;
    }
    // Without a call in between, so that no exception can come between the one and the other.
    this.#pieces = pieces;
    this.#underWay = null;
  }

  /** Carries out one call: with all of its request at once, if that was announced. */
  #carryOut(call: number, alone: Pieces): void {
    const announced = this.#announced;
    // What is taken away unannounced, and was announced to be given, is given anew (after a discard, say).
    const isRenewed = call < 0 && announced?.calls.has(-1 - call);
    if (announced === null || !(announced.calls.delete(call) || isRenewed)) {
      this.#takeBack();
      return this.#show(alone);
    }
    if (!announced.isShown) {
      const { exchange } = announced;
      announced.exchange = null;
      if (exchange !== null) this.#finish(exchange);
      else this.#show(announced.next, announced);
      announced.isShown = true;
    }
    if (announced.calls.size === 0) this.#announced = null;
  }

  /** An exchange that an exception ended, and nobody else, leaves a back end of which nobody knows what it has. */
  #endInterrupted(): void {
    const mayHave = this.#underWay;
    if (mayHave === null || (this.#announced !== null && this.#announced.exchange !== null)) return;
    const { connection } = this.#link;
    connection.cutOff(new VhostUserError("protocol", "", "A change of the back end's memory table was interrupted"));
    this.#announced = null;
    if (connection.state === "gone") this.#lose();
    else this.#table = [...this.#table, ...mayHave];
    this.#underWay = null;
  }

  /** What was announced does not come. What the back end was told of it already is taken back. */
  #takeBack(): void {
    const exchange = this.#announced?.exchange ?? null;
    this.#announced = null;
    if (exchange === null) return;
    try {
      this.#finish(exchange);
    } catch (error) {
      if (!(error instanceof VhostUserError)) throw error;
      // It has the table it had, or is cut off, which the next call tells.
      this.#underWay = null;
      return;
    }
    try {
      this.#show(this.#pieces);
    } catch (error) {
      if (!(error instanceof VhostUserError)) throw error;
      if (error.kind === "refused") notTakenBack(this.#link.connection, error);
    }
    this.#underWay = null;
  }

  /** Has the back end's table cover what of `pieces` it is given, or leaves it as it was and throws. */
  #show(pieces: Pieces, announced: Announced | null = null): void {
    const link = this.#link;
    const { state } = link.connection;
    if (state === "gone") this.#lose();
    if (!link.ready || state === "gone") return;
    if (state === "cut off") return this.#keepFrom(runsOf(pieces));
    const known = announced?.table === this.#table ? announced.change : null;
    const change = known ?? changeTable(this.#table, runsOf(pieces), link.rules);
    if (change.removed.length === 0 && change.added.length === 0) return;
    if (this.#written.isBeyondLog(change.table)) this.#written.lengthenLog(this.#table, change.table);
    this.#finish(this.#begin(pieces, change, disturbedVrings(link, change)));
  }

  /** Sends what makes the change of the table that has the back end see `pieces`. */
  #begin(pieces: Pieces, change: TableChange<OpenFile>, disturbed: readonly Vring[]): Under {
    this.#underWay = change.added;
    const ours = this.#pieces;
    const exchange = new TableExchange(this.#link, change, disturbed, {
      before: this.#table,
      userBase: this.#userBase,
      fdOf: (file) => {
        const isOf = (piece: Piece) => piece.file === file;
        return (pieces.find(isOf) ?? ours.find(isOf))?.mappable.fd ?? file.fd;
      },
    });
    return { exchange, change, before: this.#table };
  }

  /** Waits for a change of the table that has begun. */
  #finish({ exchange, change, before }: Under): void {
    const { connection } = this.#link;
    const state = (): ConnectionState => connection.state; // which changes under way
    try {
      exchange.finish();
      this.#table = change.table;
    } catch (error) {
      // One that was cut off may have any of it.
      if (state() === "cut off") this.#table = [...before, ...change.added];
      throw error;
    } finally {
      if (state() === "gone") this.#lose();
      else if (state() === "open") this.#resume();
    }
    this.#written.carry(change.removed);
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
    this.#written.lose(this.#table);
    this.#table = [];
  }

  #readUint16(gpa: number): number {
    for (const { start, end, mappable, fileOffset } of this.#pieces) {
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
