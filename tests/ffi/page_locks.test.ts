import { assertEquals, assertThrows } from "@std/assert";
import { Mappable } from "../../ffi/files/mappable.ts";
import { OsError } from "../../ffi/os/os_error.ts";
import { lockCount, lockPages, relockPages, unlockPages } from "../../ffi/host/page_locks.ts";
import { HostAddresses } from "../../ffi/host/host_addresses.ts";
import { status } from "../support/proc.ts";
import { PAGE } from "../support/units.ts";

/** Sixteen mapped pages, and how many KiB of the process are locked on top of what was before. */
function setup() {
  const va = HostAddresses.reserve(0x10_0000);
  const memory = Mappable.memfd("ram", 16 * PAGE);
  va.map(0, 16 * PAGE, memory, 0, true, undefined);
  const before = status("VmLck");
  return {
    va,
    memory,
    locked: () => status("VmLck") - before,
    [Symbol.dispose]() {
      va[Symbol.dispose]();
      memory[Symbol.dispose]();
    },
  };
}

Deno.test("pages stay locked until they were unlocked as often as locked", () => {
  using host = setup();
  const { base } = host.va;
  lockPages(base, 8 * PAGE);
  lockPages(base, 8 * PAGE);
  assertEquals(host.locked(), 32);
  unlockPages(base, 8 * PAGE);
  assertEquals(host.locked(), 32);
  unlockPages(base, 8 * PAGE);
  assertEquals(host.locked(), 0);
});

Deno.test("overlapping locks are counted page by page", () => {
  using host = setup();
  const { base } = host.va;
  lockPages(base, 8 * PAGE);
  lockPages(base + 4 * PAGE, 8 * PAGE);
  assertEquals([0, 4, 8, 12].map((page) => lockCount(base + page * PAGE)), [1, 2, 1, 0]);
  assertEquals(host.locked(), 48);
  unlockPages(base, 8 * PAGE);
  assertEquals([0, 4, 8].map((page) => lockCount(base + page * PAGE)), [0, 1, 1]);
  assertEquals(host.locked(), 32);
  unlockPages(base + 4 * PAGE, 8 * PAGE);
  assertEquals(host.locked(), 0);
});

Deno.test("unlocking more often than locking is harmless", () => {
  using host = setup();
  const { base } = host.va;
  unlockPages(base, PAGE);
  lockPages(base, PAGE);
  unlockPages(base, 2 * PAGE);
  unlockPages(base, PAGE);
  assertEquals([lockCount(base), host.locked()], [0, 0]);
});

Deno.test("a replaced mapping has lost its lock, and locking again takes hold", () => {
  using host = setup();
  const { base } = host.va;
  lockPages(base, 4 * PAGE);
  host.va.map(0, 4 * PAGE, host.memory, 0, true, undefined);
  assertEquals(host.locked(), 0);
  relockPages(base, 4 * PAGE);
  assertEquals([host.locked(), lockCount(base)], [16, 1]);
  unlockPages(base, 4 * PAGE);
  assertEquals(host.locked(), 0);
});

Deno.test("a lock over a hole fails, counts nothing, locks nothing and keeps earlier locks", () => {
  using host = setup();
  const { base } = host.va;
  lockPages(base, 2 * PAGE);
  const error = assertThrows(() => lockPages(base, 32 * PAGE), OsError, "ulimit -l");
  assertEquals([error.syscall, error.code], ["mlock", "ENOMEM"]);
  assertEquals([lockCount(base), lockCount(base + 4 * PAGE)], [1, 0]);
  assertEquals(host.locked(), 8);
  unlockPages(base, 2 * PAGE);
  assertEquals(host.locked(), 0);
});

Deno.test("the counts of a reservation go with it", () => {
  const host = setup();
  const { base } = host.va;
  lockPages(base, 4 * PAGE);
  host[Symbol.dispose]();
  assertEquals(lockCount(base), 0);
});

Deno.test("a mapper locks by its own offsets", () => {
  using host = setup();
  host.va.lockPages(PAGE, 3 * PAGE);
  assertEquals([host.locked(), lockCount(host.va.base + PAGE)], [8, 1]);
  host.va.unlockPages(PAGE, 3 * PAGE);
  assertEquals(host.locked(), 0);
});
