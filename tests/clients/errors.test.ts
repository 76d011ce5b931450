import { assert, assertEquals, assertInstanceOf, assertStrictEquals } from "@std/assert";
import {
  DisposedError,
  GuestMemoryError,
  LimitError,
  MappingError,
  MembackingError,
  MemoryLockedError,
  MemoryRange,
  OsError,
  ReentrancyError,
  RegionOverlapError,
  ReservationLostError,
} from "membacking";
import { buildError, packError } from "../../src/serving/error_data.ts";

const RANGE = new MemoryRange(0x1000, 0x3000);
const CAUSE = new OsError("mmap", 12, "no room", { cause: new TypeError("deep down") });

const ERRORS: readonly Error[] = [
  new RegionOverlapError(
    { name: "a", range: RANGE, priority: 1 },
    { name: "b", range: new MemoryRange(0, 0x2000), priority: 2 },
    "they must not",
  ),
  new MappingError("It failed", RANGE, {
    cause: CAUSE,
    outOfStep: [{ target: "KVM", range: RANGE, cause: new Error("no") }, {
      target: "DMA",
      range: RANGE,
      cause: "text",
    }],
  }),
  new GuestMemoryError("read-only", 0x1234, 8, 0x1238, CAUSE),
  new MemoryLockedError(RANGE),
  new LimitError("memory slots", 3, 5, "use fewer"),
  new DisposedError('Region "ram"'),
  new ReentrancyError(),
  CAUSE,
  new ReservationLostError(RANGE, CAUSE),
  new MembackingError("Something else", { cause: { plain: [1, "two"] } }),
  new RangeError("Out of range"),
  new TypeError("Wrong type"),
  new AggregateError([CAUSE, "text"], "Several"),
  new Error("Plain"),
  new DOMException("Stopped", "AbortError"),
];

for (const error of ERRORS) {
  Deno.test(`${error.constructor.name} keeps its class, message, fields and causes on the way through JSON`, () => {
    const back = buildError(JSON.parse(JSON.stringify(packError(error))));
    assertInstanceOf(back, Error);
    assertStrictEquals(back.constructor, error.constructor);
    assertEquals(Object.keys(back).sort(), Object.keys(error).sort());
    assertEquals(packError(back), packError(error));
    let [one, other]: [unknown, unknown] = [back, error];
    while (other instanceof Error) {
      assert(one instanceof Error);
      assertEquals([one.name, one.message], [other.name, other.message]);
      assertStrictEquals(one.constructor, other.constructor);
      [one, other] = [one.cause, other.cause];
    }
    assertEquals(one, other);
  });
}

Deno.test("an error of a class of somebody else's keeps its name", () => {
  class DeviceError extends Error {
    override name = "DeviceError";
  }
  const back = buildError(packError(new DeviceError("It is unplugged")));
  assertInstanceOf(back, Error);
  assertEquals(`${back}`, "DeviceError: It is unplugged");
});

Deno.test("what is thrown and is no error arrives as plain data", () => {
  assertEquals(buildError(packError("text")), "text");
  assertEquals(buildError(packError({ code: 5 })), { code: 5 });
  assertEquals(buildError(packError(5n)), "5");
  assertEquals(buildError(packError(undefined)), null);
});
