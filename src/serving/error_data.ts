/**
 * Errors as plain data, and back: an error that a request met in the owner's thread is thrown in the client's with its
 * class, its message, its fields and its chain of causes. What the stack says is the client's own.
 *
 * @module
 */

import { OsError } from "../../ffi/os/os_error.ts";
import { ReservationLostError } from "../../ffi/host/failures.ts";
import {
  DisposedError,
  GuestMemoryError,
  type GuestMemoryErrorKind,
  LimitError,
  MappingError,
  MembackingError,
  MemoryLockedError,
  type OutOfStep,
  ReentrancyError,
  RegionOverlapError,
  type RegionSummary,
} from "../core/errors.ts";
import { MemoryRange } from "../core/memory_range.ts";

/** A value that survives JSON. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

/** An error, or whatever else was thrown, as plain data. */
export type ErrorData = {
  /** The class, as far as it is known here; "value" for what is no error. */
  readonly kind: string;
  /** What the error calls itself. */
  readonly name: string;
  readonly message: string;
  /** The fields of the class. */
  readonly fields: Json;
  /** Absent where there is none. */
  readonly cause?: ErrorData;
};

/** How the fields of one class are packed, and how the error is built again from what was packed. */
interface Kind<E extends Error, F extends Json> {
  readonly isOne: (error: unknown) => error is E;
  readonly pack: (error: E) => F;
  readonly build: (fields: F, message: string) => E;
}

/** The packed ends of a range. */
type Ends = readonly [start: number, end: number];

function ends({ start, end }: MemoryRange): Ends {
  return [start, end];
}

function rangeOf([start, end]: Ends): MemoryRange {
  return new MemoryRange(start, end);
}

type SummaryData = { readonly name: string; readonly range: Ends; readonly priority: number };

function packSummary({ name, range, priority }: RegionSummary): SummaryData {
  return { name, range: ends(range), priority };
}

function buildSummary({ name, range, priority }: SummaryData): RegionSummary {
  return { name, range: rangeOf(range), priority };
}

type OutOfStepData = { readonly target: string; readonly range: Ends; readonly cause: ErrorData };

function packOutOfStep({ target, range, cause }: OutOfStep): OutOfStepData {
  return { target, range: ends(range), cause: packError(cause) };
}

function buildOutOfStep({ target, range, cause }: OutOfStepData): OutOfStep {
  return { target, range: rangeOf(range), cause: buildError(cause) };
}

function kind<E extends Error, F extends Json>(
  constructor: new (...args: never[]) => E,
  pack: (error: E) => F,
  build: (fields: F, message: string) => E,
): Kind<Error, Json> {
  const one: Kind<E, F> = { isOne: (error): error is E => error instanceof constructor, pack, build };
  // SAFETY: `pack` is only called for what `isOne` accepts, and `build` for what the same kind packed.
  return one as unknown as Kind<Error, Json>;
}

const none = () => null;

/** The classes, the special ones before those they extend. */
const KINDS: Readonly<Record<string, Kind<Error, Json>>> = {
  RegionOverlapError: kind(
    RegionOverlapError,
    ({ existing, new: added }) => [packSummary(existing), packSummary(added)] as const,
    ([existing, added]) => new RegionOverlapError(buildSummary(existing), buildSummary(added), ""),
  ),
  MappingError: kind(
    MappingError,
    ({ range, outOfStep }) => ({ range: ends(range), outOfStep: outOfStep.map(packOutOfStep) }),
    ({ range, outOfStep }, message) =>
      new MappingError(message, rangeOf(range), { outOfStep: outOfStep.map(buildOutOfStep) }),
  ),
  GuestMemoryError: kind(
    GuestMemoryError,
    ({ kind, gpa, length, at }) => ({ kind: kind as string, gpa, length, at }),
    ({ kind, gpa, length, at }) => new GuestMemoryError(kind as GuestMemoryErrorKind, gpa, length, at),
  ),
  MemoryLockedError: kind(
    MemoryLockedError,
    ({ range }) => ends(range),
    (range) => new MemoryLockedError(rangeOf(range)),
  ),
  LimitError: kind(
    LimitError,
    ({ limit, have, want }) => ({ limit, have, want }),
    ({ limit, have, want }) => new LimitError(limit, have, want, ""),
  ),
  DisposedError: kind(DisposedError, none, () => new DisposedError("")),
  ReentrancyError: kind(ReentrancyError, none, () => new ReentrancyError()),
  OsError: kind(
    OsError,
    ({ syscall, errno }) => ({ syscall, errno }),
    ({ syscall, errno }) => new OsError(syscall, errno),
  ),
  ReservationLostError: kind(
    ReservationLostError,
    ({ range }) => ends(range),
    (range) => new ReservationLostError(rangeOf(range), undefined),
  ),
  MembackingError: kind(MembackingError, none, (_, message) => new MembackingError(message)),
  RangeError: kind(RangeError, none, (_, message) => new RangeError(message)),
  TypeError: kind(TypeError, none, (_, message) => new TypeError(message)),
  AggregateError: kind(
    AggregateError,
    ({ errors }) => [...errors].slice(0, MOST_ERRORS).map(packError),
    (errors, message) => new AggregateError(errors.map(buildError), message),
  ),
  DOMException: kind(DOMException, ({ name }) => name, (name, message) => new DOMException(message, name)),
  Error: kind(Error, none, (_, message) => new Error(message)),
};

/** How many causes and errors in errors are kept, in all: enough for what people read. */
const MOST_ERRORS = 100;
/** How long a text may be, in characters. */
const LONGEST_TEXT = 20_000;

/** How many more errors there is room for in what is being packed; `null` between two. Packing never waits. */
let room: number | null = null;

/**
 * Makes plain data of what was thrown. Of a class that is not known here, the name and the message are kept.
 *
 * Never throws, whatever was thrown: errors whose getters throw, whose causes go round in a circle or on and on, and
 * Proxies among them. What cannot be had of them is left out.
 */
export function packError(thrown: unknown): ErrorData {
  const isOutermost = room === null;
  room ??= MOST_ERRORS;
  try {
    if (room-- <= 0) return plainValue("(further causes are left out)");
    return packKnown(thrown) ?? { kind: "value", name: typeof thrown, message: "", fields: asJson(thrown) };
  } catch {
    return plainValue("(an error that cannot be described)");
  } finally {
    if (isOutermost) room = null;
  }
}

function packKnown(thrown: unknown): ErrorData | undefined {
  for (const [name, { isOne, pack }] of Object.entries(KINDS)) {
    if (!isOne(thrown)) continue;
    // Through JSON at once: a field may be anything by now, and whoever sends the result must not stumble over it.
    const fields = attempt((): Json => JSON.parse(JSON.stringify(pack(thrown)) ?? "null"));
    const cause = attempt(() => thrown.cause);
    return {
      // What is not as its class has it can only be an error.
      kind: fields === undefined ? "Error" : name,
      name: attempt(() => text(thrown.name)) ?? name,
      message: attempt(() => text(thrown.message)) ?? "(its message cannot be read)",
      fields: fields ?? null,
      ...(cause !== undefined && { cause: packError(cause) }),
    };
  }
  return undefined;
}

function plainValue(fields: string): ErrorData {
  return { kind: "value", name: "string", message: "", fields };
}

function attempt<T>(act: () => T): T | undefined {
  try {
    return act();
  } catch {
    return undefined;
  }
}

function text(value: unknown): string {
  const whole = typeof value === "string" ? value : String(value);
  return whole.length <= LONGEST_TEXT ? whole : `${whole.slice(0, LONGEST_TEXT)}...`;
}

/** Makes an error of plain data again; an error of another kind where it is not what `packError` makes. */
export function buildError(data: ErrorData): unknown {
  try {
    return build(data);
  } catch (cause) {
    return new MembackingError("The owner's error could not be read", { cause });
  }
}

function build(data: ErrorData): unknown {
  const known = Object.hasOwn(KINDS, data.kind) ? KINDS[data.kind] : undefined;
  if (known === undefined) return data.fields;
  const error = known.build(data.fields, data.message);
  // As they were: the message was put together from things that are not all fields.
  if (error.message !== data.message) {
    Object.defineProperty(error, "message", { value: data.message, configurable: true, writable: true });
  }
  if (error.name !== data.name) {
    Object.defineProperty(error, "name", { value: data.name, configurable: true, writable: true });
  }
  if (data.cause !== undefined) {
    Object.defineProperty(error, "cause", { value: buildError(data.cause), configurable: true, writable: true });
  }
  return error;
}

function asJson(value: unknown): Json {
  try {
    const json = JSON.stringify(value) ?? "null";
    return json.length <= LONGEST_TEXT ? JSON.parse(json) : text(json);
  } catch {
    return attempt(() => text(value)) ?? "(a value that cannot be described)";
  }
}
