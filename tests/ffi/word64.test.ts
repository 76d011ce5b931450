import { assertStrictEquals } from "@std/assert";
import * as fc from "fast-check";
import { word64 } from "../../ffi/os/word64.ts";

Deno.test("word64 is BigInt of every non-negative safe integer", () => {
  for (const value of [0, 1, 0xffff_ffff, 2 ** 32, 2 ** 32 + 1, 2 ** 47 - 1, 2 ** 52, Number.MAX_SAFE_INTEGER]) {
    assertStrictEquals(word64(value), BigInt(value));
  }
  fc.assert(fc.property(fc.maxSafeNat(), (value) => word64(value) === BigInt(value)), { numRuns: 1000 });
});
