/**
 * Errors as plain data, and back: an error that a request met in the owner's thread is thrown in the client's with its
 * class, its message, its fields and its chain of causes. What the stack says is the client's own.
 *
 * @module
 */

import { OsError } from "../../ffi/os/os_error.ts";
import { ReservationLostError } from "../../ffi/host/va_mapper.ts";
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
    ({ kind, gpa, length }) => ({ kind: kind as string, gpa, length }),
    ({ kind, gpa, length }) => new GuestMemoryError(kind as GuestMemoryErrorKind, gpa, length),
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
    ({ errors }) => errors.map(packError),
    (errors, message) => new AggregateError(errors.map(buildError), message),
  ),
  DOMException: kind(DOMException, ({ name }) => name, (name, message) => new DOMException(message, name)),
  Error: kind(Error, none, (_, message) => new Error(message)),
};

/** Makes plain data of what was thrown. Of a class that is not known here, the name and the message are kept. */
export function packError(thrown: unknown): ErrorData {
  for (const [name, { isOne, pack }] of Object.entries(KINDS)) {
    if (!isOne(thrown)) continue;
    const { cause } = thrown;
    return {
      kind: name,
      name: thrown.name,
      message: thrown.message,
      fields: pack(thrown),
      ...("cause" in thrown && cause !== undefined && { cause: packError(cause) }),
    };
  }
  return { kind: "value", name: typeof thrown, message: "", fields: asJson(thrown) };
}

/** Makes an error of plain data again. */
export function buildError(data: ErrorData): unknown {
  const known = KINDS[data.kind];
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
    return JSON.parse(JSON.stringify(value) ?? "null");
  } catch {
    return String(value);
  }
}
