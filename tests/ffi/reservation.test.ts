import { assert, assertEquals, assertFalse, assertThrows } from "@std/assert";
import { keptBack, spareMappings } from "../../ffi/host/mapping_budget.ts";
import { Reservation, reservationAt } from "../../ffi/host/reservation.ts";
import { HostAddresses } from "../../ffi/host/host_addresses.ts";
import { DisposedError } from "../../src/core/errors.ts";
import { mappings, readProc } from "../support/proc.ts";

const SIZE = 2 ** 30;

function isReserved({ base, length }: { base: number; length: number }): boolean {
  return mappings(base, base + length).some(({ start, access }) => start === base && access === "---p");
}

Deno.test("disposing a mapper that nobody else holds unmaps its addresses", () => {
  const va = HostAddresses.reserve(SIZE);
  assert(isReserved(va));
  va[Symbol.dispose]();
  va[Symbol.dispose]();
  assertFalse(isReserved(va));
  assert(va.disposed);
});

Deno.test("addresses stay reserved until the last holder has let go, whatever the order", () => {
  for (const order of [[0, 1, 2], [2, 1, 0], [1, 0, 2], [2, 0, 1]]) {
    const va = HostAddresses.reserve(SIZE);
    const holders = [va, va.retain(), va.retain()];
    order.forEach((index, nth) => {
      assert(isReserved(va), `${order} before ${nth}`);
      holders[index]?.[Symbol.dispose]();
      holders[index]?.[Symbol.dispose]();
    });
    assertFalse(isReserved(va), String(order));
  }
});

Deno.test("a disposed mapper takes no new holders, and works for those it has", () => {
  const va = HostAddresses.reserve(SIZE);
  const holder = va.retain();
  va[Symbol.dispose]();
  assertThrows(() => va.retain(), DisposedError, "VaMapper has been disposed");
  va.map(0, 4096, null, 0, true, undefined);
  holder[Symbol.dispose]();
  assertThrows(() => va.map(0, 4096, null, 0, true, undefined), DisposedError);
  assertThrows(() => va.remove(0, 4096), DisposedError);
});

Deno.test("a reservation is found by any address in it, and not after it is gone", () => {
  const reservation = new Reservation(SIZE, 2 ** 21);
  const { base } = reservation;
  assert(reservationAt(base, 4096) === reservation);
  assert(reservationAt(base + SIZE - 4096, 4096) === reservation);
  assert(reservationAt(base - 4096, 8192) === reservation);
  assertEquals(reservationAt(base - 4096, 4096), undefined);
  assertEquals(reservationAt(base + SIZE, 4096), undefined);
  reservation.release();
  assertEquals(reservationAt(base, 4096), undefined);
  assertThrows(() => reservation.retain(), DisposedError);
});

Deno.test("the budget of mappings is what the kernel allows, less what is kept for everything else", () => {
  const limit = Number(readProc("/proc/sys/vm/max_map_count"));
  assert(spareMappings() < limit - keptBack(limit));
  assert(spareMappings() > limit - keptBack(limit) - 5000, "a test process does not have thousands of mappings");
  assertEquals([keptBack(65530), keptBack(2 ** 20), keptBack(4096)], [16382, 16384, 1024]);
});

Deno.test("all reservations draw on one budget, and give back what they had", () => {
  const before = spareMappings();
  const a = HostAddresses.reserve(SIZE);
  const b = HostAddresses.reserve(SIZE);
  assertEquals(a.spareMappings, before - 2);
  a.noteMappings(1001);
  b.noteMappings(11);
  assertEquals([a.spareMappings, b.spareMappings], [before - 1012, before - 1012]);
  a[Symbol.dispose]();
  assertEquals(b.spareMappings, before - 11);
  a.noteMappings(500);
  b[Symbol.dispose]();
  assertEquals(spareMappings(), before);
});
