/**
 * The errors this package throws. Each keeps the numbers it was raised with as fields, so that a caller never
 * has to parse a message; `cause` is kept wherever one error led to another.
 *
 * A plain bad argument (a fractional address, a priority of 300) is a built-in `RangeError` or `TypeError`: it is a
 * mistake in the program, not a state of the memory map.
 *
 * @module
 */

import { hex } from "./hex.ts";
import type { MemoryRange } from "./memory_range.ts";

/** The base of every error this package throws, apart from `TypeError` and `RangeError` for bad arguments. */
export class MembackingError extends Error {
  /** The class name, which is also what a stack trace shows. */
  override name = "MembackingError";
}

/** What `RegionOverlapError` says about each of the two regions. */
export interface RegionSummary {
  /** The region's name, as given to `newRegion`. */
  readonly name: string;
  /** The GPA range it occupies, in bytes. */
  readonly range: MemoryRange;
  /** Its priority, 0 to 255. */
  readonly priority: number;
}

/** A new region overlaps an existing one in a way the overlap rule does not allow. */
export class RegionOverlapError extends MembackingError {
  /** The class name, which is also what a stack trace shows. */
  override name = "RegionOverlapError";
  /** The region that was there first. */
  readonly existing: RegionSummary;
  /** The region that was refused. */
  readonly new: RegionSummary;

  /** Builds the error from the two regions and the rule that was broken. */
  constructor(existing: RegionSummary, added: RegionSummary, rule: string) {
    super(
      `Region "${added.name}" (${added.range}, priority ${added.priority}) overlaps region "${existing.name}" ` +
        `(${existing.range}, priority ${existing.priority}): ${rule}`,
    );
    this.existing = summaryOf(existing);
    this.new = summaryOf(added);
  }
}

/** A copy: what is passed may be the region itself, which an error must not hand out. */
function summaryOf({ name, range, priority }: RegionSummary): RegionSummary {
  return Object.freeze({ name, range, priority });
}

/** What one target did not take back while a failed request was undone. */
export interface OutOfStep {
  /** Which target: "host memory", or the name of a partition or DMA target. */
  readonly target: string;
  /** The GPA range that is not as it was, in bytes. */
  readonly range: MemoryRange;
  /** What the target threw. */
  readonly cause: unknown;
}

/**
 * A mapping is impossible, or a target failed to carry it out.
 *
 * When a target failed, `cause` is what it threw, and everything done before has been undone. What could not be undone
 * is listed in `outOfStep`; it has left the books, and the next request over it tries to put it in place.
 */
export class MappingError extends MembackingError {
  /** The class name, which is also what a stack trace shows. */
  override name = "MappingError";
  /** The GPA range concerned, in bytes. */
  readonly range: MemoryRange;
  /** Targets that could not be restored; empty when the failed request left no trace. */
  readonly outOfStep: readonly OutOfStep[];

  /** Builds the error for `range`. */
  constructor(
    message: string,
    range: MemoryRange,
    options: { cause?: unknown; outOfStep?: readonly OutOfStep[] } = {},
  ) {
    super(message, "cause" in options ? { cause: options.cause } : undefined);
    this.range = range;
    this.outOfStep = options.outOfStep ?? [];
  }
}

/** Why guest memory could not be accessed. */
export type GuestMemoryErrorKind = "out-of-range" | "not-mapped" | "read-only";

/** An access to guest memory that the memory map does not allow. Nothing was read or written. */
export class GuestMemoryError extends MembackingError {
  /** The class name, which is also what a stack trace shows. */
  override name = "GuestMemoryError";
  /** The first byte of the access, a GPA. */
  readonly gpa: number;
  /** The length of the access in bytes. */
  readonly length: number;
  /** What was wrong with it. */
  readonly kind: GuestMemoryErrorKind;
  /** The first address in the way, a GPA; where guest memory ends for "out-of-range". */
  readonly at: number;

  /** Builds the error for the access; `at` is the first offending address. */
  constructor(kind: GuestMemoryErrorKind, gpa: number, length: number, at: number = gpa, cause?: unknown) {
    const why = kind === "out-of-range"
      ? `guest memory ends at ${hex(at)}`
      : kind === "not-mapped"
      ? `nothing is mapped at ${hex(at)}`
      : `${hex(at)} is read-only`;
    super(
      `Cannot access ${length} bytes of guest memory at ${hex(gpa)}: ${why}`,
      cause === undefined ? undefined : { cause },
    );
    this.gpa = gpa;
    this.length = length;
    this.kind = kind;
    this.at = at;
  }
}

/** A request would change memory that someone holds a lock on. Nothing has changed. */
export class MemoryLockedError extends MembackingError {
  /** The class name, which is also what a stack trace shows. */
  override name = "MemoryLockedError";
  /** The locked GPA range that is in the way, in bytes. */
  readonly range: MemoryRange;

  /** Builds the error for the lock in the way. */
  constructor(range: MemoryRange) {
    super(`Guest memory at ${range} is locked and cannot be changed, dispose the lock first`);
    this.range = range;
  }
}

/** A request would go past a limit of the host. Nothing has changed. */
export class LimitError extends MembackingError {
  /** The class name, which is also what a stack trace shows. */
  override name = "LimitError";
  /** Which limit, in words: "memory slots", "host mappings". */
  readonly limit: string;
  /** How many there may be. */
  readonly have: number;
  /** How many the request would need. */
  readonly want: number;

  /** Builds the error; `hint` says what can be done about it. */
  constructor(limit: string, have: number, want: number, hint: string) {
    super(`The request needs ${want} ${limit} and ${have} are available: ${hint}`);
    this.limit = limit;
    this.have = have;
    this.want = want;
  }
}

/** A handle was used after it was disposed. */
export class DisposedError extends MembackingError {
  /** The class name, which is also what a stack trace shows. */
  override name = "DisposedError";

  /** Builds the error for the thing named, such as `Region "ram"`; `how` says what became of it. */
  constructor(what: string, how: string = "has been disposed") {
    super(`${what} ${how}`);
  }
}

/** A callback of the region manager called back into it. Requests are served one at a time. */
export class ReentrancyError extends MembackingError {
  /** The class name, which is also what a stack trace shows. */
  override name = "ReentrancyError";

  /** Builds the error. */
  constructor() {
    super(
      "A partition, DMA target, logger or quiesce callback cannot make requests to the region manager that called it",
    );
  }
}
