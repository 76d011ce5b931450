import type { Mappable } from "../../ffi/files/mappable.ts";
import { hostView, revokeView } from "../../ffi/os/view.ts";
import { DisposedError, MappingError } from "../core/errors.ts";
import { MemoryRange } from "../core/memory_range.ts";
import type { HostBytes } from "../core/targets.ts";
import type { AccessMap, Backed } from "../memory/access_map.ts";
import type { MemoryPiece } from "../memory/memory_piece.ts";
import { fewSpans, type Span } from "../core/span.ts";
import { HeldLocks, type Lock } from "../memory/held_locks.ts";
import type { LockedMemory } from "../memory/locked_memory.ts";
import { readOnlyView, type ViewPart } from "../memory/read_only_view.ts";
import type { Hold } from "./hold.ts";
import type { LockSlots } from "../serving/lock_slots.ts";
import { CODE } from "../serving/page_codes.ts";
import type { WriteMarks } from "../memory/write_marks.ts";
import type { PageReader, Row, Shown } from "./page_reader.ts";

/** Where a client's guest memory is, and how it gets there. */
export interface MemoryHost {
  /** The host address of GPA 0. */
  readonly base: number;
  /** Whether pieces have to be told apart by their files and offsets, and not by their access alone. */
  readonly isExact: boolean;
  /** The file of a row. */
  file(row: Row): Mappable;
  /**
   * Sees to it that the host's own bytes of `[start, end)` are those of the row, `undefined` for private memory.
   *
   * @returns Whether they can be: private memory is where it is, and nowhere else.
   */
  show(start: number, end: number, row: Row | undefined, writable: boolean): boolean;
}

/** What a client's memory is made of. */
export interface ClientAccessOptions {
  readonly host: MemoryHost;
  /** Where guest memory ends, in bytes. */
  readonly length: number;
  readonly pages: PageReader;
  readonly slots: LockSlots;
  readonly hold: Hold;
  /** Is told of each lock that was released. */
  readonly released: () => void;
  /** The marks of writes, once there are any: the same ones from then on. */
  readonly marks: () => WriteMarks;
}

/** A lock, and the slot that tells the owner of it. */
interface ClientLock extends Lock {
  readonly write: boolean;
  readonly slot: number;
}

/** Addresses that were locked are remembered as this many spans at most. */
const REMEMBERED = 8;

/** The memory map as a client's `GuestMemory` sees it. All but `length` is used while changes are held off. */
export class ClientAccess implements AccessMap {
  readonly length: number;
  readonly hasAddresses = true;
  /** All of host memory, made at the first access. */
  #host: ArrayBuffer | undefined;
  readonly #options: ClientAccessOptions;
  readonly #held = new HeldLocks<ClientLock>((lock) => this.#release(lock), () => {});
  #everLocked: readonly Span[] = [];
  #marks: WriteMarks | null = null;

  constructor(options: ClientAccessOptions) {
    this.length = options.length;
    this.#options = options;
  }

  find(gpa: number): Backed | undefined {
    const { host, pages } = this.#options;
    const shown = pages.at(gpa, host.isExact);
    if (shown === undefined) return undefined;
    const { start, end, code } = shown;
    const writable = (code & CODE.writable) !== 0;
    const row = pages.row(code);
    if ((code & CODE.truncatable) !== 0 && row !== undefined) {
      return { start, end, writable, file: { mappable: host.file(row), offset: start + row.delta } };
    }
    return host.show(start, end, row, writable) ? { start, end, writable, file: null } : undefined;
  }

  get base(): number {
    return this.#options.host.base;
  }

  piece(gpa: number): MemoryPiece | null {
    const shown = this.#options.pages.pieceAt(gpa);
    return shown === undefined ? null : this.#piece(shown, shown.start, shown.end);
  }

  pieces(start: number, end: number): IterableIterator<MemoryPiece> {
    const { pages } = this.#options;
    const found: MemoryPiece[] = [];
    for (let at = start; at < Math.min(end, this.length);) {
      const shown = pages.pieceAt(at);
      const to = Math.min(shown?.end ?? pages.entryEnd(at), end);
      if (shown !== undefined) found.push(this.#piece(shown, at, to));
      at = to;
    }
    return found.values();
  }

  #piece({ code }: Shown, start: number, end: number): MemoryPiece {
    const { region, kind, delta } = this.#options.pages.nature(code);
    return Object.freeze({
      range: new MemoryRange(start, end),
      region,
      writable: (code & CODE.writable) !== 0,
      kind,
      hva: this.base + start,
      // The owner may close it at any time.
      mappable: null,
      fileOffset: kind === "private" ? 0 : start + delta,
    });
  }

  get marks(): WriteMarks | null {
    const { hold, marks } = this.#options;
    return hold.isMarking ? this.#marks ??= marks() : null;
  }

  bytesAt(gpa: number): HostBytes {
    this.#host ??= this.#view(0, this.length);
    return { buffer: this.#host, offset: gpa };
  }

  #view(start: number, end: number): ArrayBuffer {
    return hostView(this.#options.host.base + start, end - start);
  }

  lock(range: MemoryRange, _pieces: readonly Backed[], write: boolean): LockedMemory {
    const { slots } = this.#options;
    const { start, end } = range;
    const parts = this.#parts(range);
    const { buffer, alias } = parts.every(({ writable }) => writable)
      ? { buffer: this.#view(start, end), alias: undefined }
      : readOnlyView(parts, range, () => this.#view(start, end));
    let slot: number | undefined;
    try {
      slot = slots.claim(start, end, write);
      // The owner may see this lock only once it is gone again.
      if (write) this.marks?.mark(start, end);
      const locked = this.#held.hold(range, { start, end, write, slot }, buffer, alias);
      if (!this.#everLocked.some((span) => span.start <= start && end <= span.end)) {
        this.#everLocked = fewSpans([...this.#everLocked, { start, end }], REMEMBERED);
      }
      return locked;
    } catch (error) {
      if (slot !== undefined) slots.release(slot);
      revokeView(buffer);
      alias?.[Symbol.dispose]();
      throw error;
    }
  }

  /** Where there ever was a lock, and a little around it: late input and output into it may still be under way. */
  get everLocked(): readonly Span[] {
    return this.#everLocked;
  }

  /** Whether nothing is locked. */
  get isUnlocked(): boolean {
    return this.#held.isEmpty;
  }

  /** Whether a part of `[start, end)` is locked. */
  isLocked(start: number, end: number): boolean {
    return this.#held.overlaps(start, end);
  }

  /** Disposes every lock. Returns what failed: bytes that were transferred away stay locked. */
  revokeAll(): unknown[] {
    return this.#held.disposeAll();
  }

  /** Gives a slot back; what was written by a lock that may write since the owner looked last is not known. */
  #release({ start, end, write, slot }: ClientLock): void {
    const { hold, slots, released } = this.#options;
    if (hold.closed === null) {
      try {
        hold.enter();
      } catch {
        slots.release(slot);
        return released();
      }
      if (write) this.marks?.mark(start, end);
      slots.release(slot);
      hold.leave();
    } else {
      // The map does not change any more for this client, and whoever counts its locks does so after this message.
      slots.release(slot);
    }
    released();
  }

  /** What backs a range, mapping by mapping. */
  #parts(range: MemoryRange): ViewPart[] {
    const { host, pages } = this.#options;
    const parts: ViewPart[] = [];
    for (let at = range.start; at < range.end;) {
      const shown = pages.at(at, true);
      // It is there: the caller has looked, and nothing has changed since.
      if (shown === undefined) break;
      const { code } = shown;
      const end = Math.min(shown.end, range.end);
      if ((code & CODE.truncatable) !== 0) {
        throw new MappingError(
          "This memory cannot be locked, since its file may be truncated, or punched: seal it with F_SEAL_SHRINK or " +
            "vouch for it with fixedSize: true, where the owner makes it",
          new MemoryRange(at, end),
        );
      }
      if ((code & CODE.closing) !== 0) {
        throw new DisposedError(`The region at ${new MemoryRange(at, end)}, which is being torn down,`);
      }
      const row = pages.row(code);
      const writable = (code & CODE.writable) !== 0;
      // As for the access that has been checked: all of it is there.
      host.show(at, end, row, writable);
      parts.push({
        start: at,
        end,
        mappable: row === undefined ? null : host.file(row),
        fileOffset: at + (row?.delta ?? 0),
        writable,
      });
      at = end;
    }
    return parts;
  }
}
