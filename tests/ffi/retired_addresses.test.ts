import { assert, assertEquals } from "@std/assert";
import { HostAddresses } from "../../ffi/host/host_addresses.ts";
import { giveBackOldest, retiredCount } from "../../ffi/host/retired_addresses.ts";
import { mappings } from "../support/proc.ts";

/** The addresses of a reservation that is gone, of which a page in the middle was to be kept. */
function retireOne(length: number): number {
  using va = HostAddresses.reserve(length);
  va.keepReserved(length / 2, length / 2 + 0x1000);
  return va.base + length / 2;
}

function isKept(address: number): boolean {
  return mappings(address, address + 0x1000)[0]?.access === "---p";
}

Deno.test("retired addresses stay inaccessible, until there are no others: then the oldest come back", () => {
  const before = retiredCount();
  const few = Array.from({ length: 8 }, () => retireOne(2 ** 30));
  assert(few.every(isKept));
  assertEquals(retiredCount(), before + 8);
  // Each leaves gaps that none of its length fits into: address space runs out, again and again.
  const large = Array.from({ length: 100 }, () => retireOne(2 ** 44));
  assert(isKept(large.at(-1) ?? 0));
  assert(retiredCount() < before + 8 + 100);
  assert(!few.every(isKept));
  while (giveBackOldest(0)) assert(retiredCount() >= 0);
  assertEquals(retiredCount(), 0);
});
