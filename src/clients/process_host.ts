import type { Mappable } from "../../ffi/files/mappable.ts";
import type { MemoryPolicy } from "../core/targets.ts";
import { HostAddresses } from "../../ffi/host/host_addresses.ts";
import { LimitError } from "../core/errors.ts";
import { RangeMap } from "../core/range_map.ts";
import { gaps, type Span } from "../core/span.ts";
import { CODE } from "../serving/page_codes.ts";
import type { MemoryHost } from "./client_access.ts";
import type { PageReader, Row } from "./page_reader.ts";

/** What is mapped here. */
interface Shown {
  readonly file: number;
  /** File offset minus GPA, in bytes. */
  readonly delta: number;
  readonly writable: boolean;
}

/** How many kernel mappings are left to others. */
const KEPT_BACK = 16;

/** Core dumps and forks of a client do not get guest memory either. */
const POLICY: MemoryPolicy = Object.freeze({ coreDump: false, fork: false });

/**
 * Guest memory in a process that is not the owner's: a reservation of its own, in which files are mapped as they are
 * accessed. What is mapped may be out of date; what is accessed has been compared with the owner's map before.
 */
export class ProcessHost implements MemoryHost, Disposable {
  readonly isExact = true;
  readonly #va: HostAddresses;
  readonly #file: (number: number) => Mappable;
  /** Whether this client has locked a part of a range. */
  isLocked: (start: number, end: number) => boolean = () => false;
  #shown: RangeMap<Shown> = RangeMap.EMPTY;

  /** For `length` bytes of guest memory; `file` finds the owner's files by their numbers. */
  constructor(length: number, alignment: number, file: (number: number) => Mappable) {
    this.#va = HostAddresses.reserve(length, { alignment });
    this.#file = file;
  }

  get base(): number {
    return this.#va.base;
  }

  file(row: Row): Mappable {
    return this.#file(row.file);
  }

  show(start: number, end: number, row: Row | undefined, writable: boolean): boolean {
    if (row === undefined) return false;
    const { file, delta } = row;
    const isRight = ({ value }: { value: Shown }) =>
      value.file === file && value.delta === delta && value.writable === writable;
    const there = [...this.#shown.overlapping(start, end)].filter(isRight);
    const missing = gaps(start, end, there);
    if (missing.length === 0) return true;
    this.#makeRoom(missing.length);
    const mappable = this.#file(file);
    for (const { start: from, end: to } of missing) {
      this.#va.map(from, to, mappable, from + delta, writable, POLICY);
      this.#shown = this.#shown.set(from, to, { file, delta, writable });
    }
    this.#count();
    return true;
  }

  /** Lets go of what is mapped in `spans` and is not what the owner's map says any more. */
  letGo(spans: readonly Span[], pages: PageReader): void {
    for (const { start, end } of spans) {
      for (const there of [...this.#shown.overlapping(start, end)]) {
        this.#letGoOf(Math.max(there.start, start), Math.min(there.end, end), there.value, pages);
      }
    }
    this.#count();
  }

  /** Says that nothing else may ever get these addresses: late input and output into a lock may still be under way. */
  keepReserved({ start, end }: Span): void {
    this.#va.keepReserved(start, end);
  }

  [Symbol.dispose](): void {
    this.#va[Symbol.dispose]();
  }

  #letGoOf(start: number, end: number, { file, delta, writable }: Shown, pages: PageReader): void {
    for (let at = start; at < end;) {
      const now = pages.at(at, true);
      const to = Math.min(now?.end ?? pages.entryEnd(at), end);
      const row = now === undefined ? undefined : pages.row(now.code);
      const isSame = now !== undefined && row?.file === file && row.delta === delta &&
        ((now.code & CODE.writable) !== 0) === writable;
      if (!isSame && !this.isLocked(at, to)) this.#remove(at, to);
      at = to;
    }
  }

  #remove(start: number, end: number): void {
    this.#va.remove(start, end);
    this.#shown = this.#shown.delete(start, end);
  }

  /** Sees to it that so many more mappings can be made: by letting go of everything, if need be. */
  #makeRoom(count: number): void {
    const want = 2 * count + KEPT_BACK;
    if (this.#va.spareMappings >= want) return;
    for (const { start, end } of [...this.#shown]) if (!this.isLocked(start, end)) this.#remove(start, end);
    this.#count();
    const have = this.#va.spareMappings;
    if (have < want) throw new LimitError("host mappings", have, want, "access fewer pieces of memory at a time");
  }

  #count(): void {
    this.#va.noteMappings(2 * this.#shown.size + 1);
  }
}
