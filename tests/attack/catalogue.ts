/**
 * Values that type-check, that a caller can easily produce, or that nobody should: for every argument and option there is.
 *
 * @module
 */

import { MemoryRange } from "membacking";
import { Planted } from "./family.ts";
import type { Random } from "./random.ts";

const PAGE = 0x1000;

const NUMBERS: readonly number[] = [
  ...[0, -0, 1, -1, 0.5, NaN, Infinity, -Infinity, 1e308, Number.MIN_VALUE],
  ...[PAGE, PAGE - 1, PAGE + 1, 0x10_0000, 0x20_0000, 0x4000_0000],
  ...[2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 32 + PAGE, 2 ** 40, 2 ** 47 - PAGE, 2 ** 47],
  ...[2 ** 52 - PAGE, 2 ** 52, 2 ** 53 - 1, 2 ** 53, 2 ** 63, 2 ** 64],
];

/** A number: one that is wrong in some way, or one that fits. */
export function anyNumber(random: Random): number {
  if (random.oneIn(2)) return random.below(64) * PAGE;
  return random.oneIn(4) ? random.next() : random.of(NUMBERS);
}

/** A range that is one, of up to 64 pages. */
export function goodRange(random: Random): MemoryRange {
  return MemoryRange.of(random.below(64) * PAGE, (1 + random.below(16)) * PAGE);
}

/** A range that says one thing now and another the next time. */
class ChangingRange extends MemoryRange {
  readonly #random: Random;

  constructor(random: Random) {
    super(0, PAGE);
    this.#random = random;
    for (const name of ["start", "end"] as const) {
      try {
        Object.defineProperty(this, name, { get: () => anyNumber(this.#random) });
      } catch {
        // Frozen: then it stays as it is.
      }
    }
  }

  override get length(): number {
    return anyNumber(this.#random);
  }
}

/** A range, good or tampered with. */
export function anyRange(random: Random): unknown {
  switch (random.below(8)) {
    case 0:
      return new ChangingRange(random);
    case 1:
      return { start: anyNumber(random), end: anyNumber(random) };
    case 2:
      return Object.create(MemoryRange.prototype, { start: { value: NaN }, end: { value: 2 ** 60 } });
    case 3:
      return new Proxy(goodRange(random), { get: () => anyNumber(random) });
    default:
      return goodRange(random);
  }
}

/** An object whose every property is something else each time it is looked at. */
function changing(random: Random): object {
  return new Proxy({}, {
    get: (_, name) => typeof name === "symbol" ? undefined : random.oneIn(3) ? anyNumber(random) : anything(random),
    has: () => random.oneIn(2),
    ownKeys: () => [],
  });
}

/** An array that is longer the second time. */
function growing(random: Random): unknown {
  let asked = 0;
  return new Proxy([goodRange(random)], {
    get: (target, name, receiver) => name === "length" ? 1 + 1000 * asked++ : Reflect.get(target, name, receiver),
  });
}

function throwing(): object {
  const fail = () => {
    throw new Planted("from a trap");
  };
  return new Proxy({}, { get: fail, has: fail, ownKeys: fail, getPrototypeOf: fail });
}

function cyclic(): object {
  const error: Error & { errors?: unknown[] } = new Error("cyclic");
  error.cause = error;
  error.errors = [error];
  return error;
}

function detached(): Uint8Array {
  const bytes = new Uint8Array(64);
  bytes.buffer.transfer(0);
  return bytes;
}

function liar(): Uint8Array {
  return Object.defineProperties(new Uint8Array(8), {
    length: { value: 2 ** 31 },
    byteLength: { value: 2 ** 31 },
    buffer: { get: () => new ArrayBuffer(2 ** 20) },
    subarray: { value: () => new Uint8Array(2 ** 20) },
  });
}

function bytes(random: Random): unknown {
  const length = random.of([0, 1, 3, 8, 64, PAGE, 3 * PAGE]);
  return random.of<() => unknown>([
    () => new Uint8Array(length),
    () => new Uint8Array(new SharedArrayBuffer(length)),
    () => new Uint8Array(new ArrayBuffer(length, { maxByteLength: length + 64 })),
    () => new Float64Array(8),
    () => new DataView(new ArrayBuffer(length)),
    () => new ArrayBuffer(length),
    detached,
    liar,
  ])();
}

const FUNCTIONS: readonly (() => unknown)[] = [
  () => {},
  () => {
    throw new Planted("from a callback");
  },
  () => Promise.resolve(),
  () => NaN,
  () => ({ [Symbol.dispose]() {} }),
  () => ({
    [Symbol.dispose]() {
      throw new Planted("from a dispose");
    },
  }),
  () => ({
    get then() {
      throw new Planted("from a thenable");
    },
  }),
];

const OPTION_NAMES: readonly string[] = [
  ...["name", "range", "priority", "type", "holes", "writable", "executable", "prefetch", "rangeInRegion", "mappable"],
  ...[
    "fileOffset",
    "copyOnWrite",
    "policy",
    "offset",
    "length",
    "size",
    "seal",
    "hugepageSize",
    "alignment",
    "overlap",
  ],
  ...["logger", "quiesce", "timeout", "deadline", "signal", "pin", "pins", "needsFd", "write", "fixedSize", "ram"],
  ...[
    "maxAddress",
    "x86Legacy",
    "backing",
    "ranges",
    "aliasOffset",
    "onProgress",
    "address",
    "port",
    "value",
    "dirtyLog",
  ],
  ...["transparentHugepages", "hostNumaNode", "hugepages", "numaNode", "width", "zapAllOnSlotDelete", "va", "gpa"],
];

/** An object of options: some of them, good and bad. */
export function anyOptions(random: Random, live: readonly unknown[] = []): Record<string, unknown> {
  const options: Record<string, unknown> = {
    name: "attacked",
    range: anyRange(random),
    rangeInRegion: anyRange(random),
    priority: random.below(260),
    mappable: random.oneIn(3) || live.length === 0 ? "private" : random.of(live),
    length: (1 + random.below(8)) * PAGE,
    offset: random.below(8) * PAGE,
    fileOffset: random.below(8) * PAGE,
  };
  for (let left = random.below(4); left > 0; left--) options[random.of(OPTION_NAMES)] = anything(random, live);
  if (random.oneIn(6)) delete options[random.of(Object.keys(options))];
  return options;
}

/** Anything at all. `live` are objects of the package, some of them disposed or of another owner. */
export function anything(random: Random, live: readonly unknown[] = []): unknown {
  const choices: readonly (() => unknown)[] = [
    () => anyNumber(random),
    () => anyNumber(random),
    () => anyRange(random),
    () => anyRange(random),
    () => anyOptions(random, live),
    () => (live.length > 0 ? random.of(live) : null),
    () => (live.length > 0 ? random.of(live) : null),
    () => bytes(random),
    () => random.of(FUNCTIONS),
    () => random.of([undefined, null, true, false]),
    () => BigInt(random.of([0, 1, -1, PAGE, 2 ** 53, 2 ** 64])),
    () =>
      random.of(["", "ram", "private", "0x1000-0x2000", "a\0b", "unmapped", "read-only", "any", "x".repeat(100_000)]),
    () => Symbol("attack"),
    () => [goodRange(random), anyRange(random)],
    () => growing(random),
    () => new Array(2 ** 20),
    () => changing(random),
    throwing,
    cyclic,
    () => Object.create(null),
    () => new Map([[1, 2]]),
    () => AbortSignal.abort(new Planted("aborted")),
    () => new Date(NaN),
  ];
  return random.of(choices)();
}
