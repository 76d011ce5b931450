import { HostAddresses } from "../../ffi/host/host_addresses.ts";
import { assertEquals, assertGreater, assertLess, assertStringIncludes, assertThrows } from "@std/assert";
import {
  GuestMemoryError,
  type Mappable,
  MappingError,
  type MemoryPolicy,
  RegionManager,
  type VaTarget,
} from "membacking";
import { kvmTest, noKvm, testUnless } from "../support/require.ts";
import { assertAllOrNothing, runChild } from "./child.ts";
import type { Attempt, Failure, Snapshot } from "./children/attempt.ts";
import { noHugePageFiles } from "./huge_pages.ts";
import { stamp, stampedFile, stamps } from "./machine.ts";
import type { Sight } from "./witness.ts";
import { range } from "../support/units.ts";

/** Real host memory that refuses to be mapped as often as told. */
class Refusing implements VaTarget<Mappable> {
  refusals = 0;
  readonly #va: HostAddresses;

  constructor(va: HostAddresses) {
    this.#va = va;
  }

  get base(): number {
    return this.#va.base;
  }

  get length(): number {
    return this.#va.length;
  }

  map(
    ...args: [number, number, Mappable | null, number, boolean, MemoryPolicy | undefined]
  ): void {
    if (this.refusals-- > 0) throw new Error("refused");
    this.#va.map(...args);
  }

  protect(start: number, end: number, writable: boolean): void {
    this.#va.protect(start, end, writable);
  }

  remove(start: number, end: number): void {
    this.#va.remove(start, end);
  }

  park(...args: Parameters<VaTarget<Mappable>["park"]>): void {
    this.#va.park(...args);
  }

  restore(...args: Parameters<VaTarget<Mappable>["restore"]>): void {
    this.#va.restore(...args);
  }

  discard(...args: Parameters<VaTarget<Mappable>["discard"]>): void {
    this.#va.discard(...args);
  }

  view(start: number, end: number): ArrayBuffer {
    return this.#va.view(start, end);
  }
}

Deno.test("where an undo failed, memory cannot be accessed, and all around it can", () => {
  using va = HostAddresses.reserve(2 ** 21);
  const host = new Refusing(va);
  using regions = new RegionManager(host);
  using file = stampedFile(1, 0x8000);
  using other = stampedFile(2, 0x8000);
  using region = regions.newRegion({ name: "ram", range: range(0, 0x8000), priority: 0 });
  region.addMapping({ rangeInRegion: range(0, 0x8000), mappable: file });
  region.map();
  const replacement = { rangeInRegion: range(0x3000, 0x5000), mappable: other };
  host.refusals = 2;
  const error = assertThrows(() => region.addMapping(replacement), MappingError, "could not be undone");
  assertEquals(error.outOfStep.map(({ range }) => String(range)), ["0x3000-0x5000"]);
  const words = () =>
    Array.from({ length: 8 }, (_, page) => {
      try {
        return regions.memory.readUint32(page * 0x1000 + 0xffc);
      } catch (error) {
        return error instanceof GuestMemoryError ? error.kind : String(error);
      }
    });
  const lost = ["not-mapped", "not-mapped"];
  assertEquals(words(), [...stamps(1, 0, 3), ...lost, ...stamps(1, 5, 3)]);
  assertThrows(() => regions.memory.read(0x2000, 0x2000), GuestMemoryError, "nothing is mapped at 0x3000");
  regions.memory.fill(0x5000, 0x1000, 0);
  region.addMapping(replacement);
  assertEquals(words(), [...stamps(1, 0, 3), ...stamps(2, 0, 2), 0, ...stamps(1, 6, 2)]);
});

kvmTest("the kernel's own limit on mappings fails a request half-way, and no part of it stays", async () => {
  type What = "cover" | "replacement" | "removal" | "protection";
  const attempts = await runChild<Record<What, Attempt>>("few_mappings.ts", { fewMappings: true });
  for (const [what, attempt] of Object.entries(attempts)) {
    assertAllOrNothing(attempt, what);
    const { error } = attempt;
    const call = what === "protection" ? "mprotect" : "mmap";
    assertEquals([error?.name, error?.cause?.os, error?.outOfStep], ["MappingError", `${call} ENOMEM`, 0], what);
  }
  const { cover, replacement, removal, protection } = attempts;
  assertEquals(cover.before.guest.slice(0, 3), ["mmio", stamp(1, 0), stamp(1, 1)]);
  assertEquals(cover.finally.guest.slice(0, 4), ["mmio", stamp(2, 0), "mmio", stamp(2, 1)]);
  assertEquals(replacement.finally.guest.slice(20, 24), [stamp(1, 19), stamp(2, 0), stamp(1, 21), stamp(2, 0)]);
  assertEquals(removal.finally.guest.slice(20, 24), [stamp(1, 19), "fault", stamp(1, 21), "fault"]);
  assertEquals(protection.finally.guest, stamps(1, 0, 200));
  assertEquals(protection.finally.slots.filter((slot) => slot.includes(" ro ")).length, 100);
});

/** A request that was to fail, and whether anything was different afterwards. */
interface Refused {
  readonly error: Failure | null;
  readonly same: boolean;
}

kvmTest("the manager stops before the kernel's limit on mappings, and the process goes on", async () => {
  interface Report {
    readonly limit: number;
    readonly spare: number;
    readonly most: number;
    readonly inProcess: number;
    readonly added: number;
    readonly seen: readonly Sight[];
    readonly tooManyAtOnce: Refused;
    readonly oneMore: Refused;
    readonly afterSomeLess: Failure | null;
  }
  const { limit, spare, most, inProcess, added, seen, tooManyAtOnce, oneMore, afterSomeLess } = await runChild<
    Report
  >("budget.ts");
  for (const { error, same } of [tooManyAtOnce, oneMore]) {
    assertEquals([error?.name, error?.limit?.limit, same], ["LimitError", "host mappings", true]);
    const { have = 0, want = 0 } = error?.limit ?? {};
    assertLess(Math.abs(have - spare), 200, "the limit was met where it was expected");
    assertGreater(want, have);
  }
  assertEquals(seen.map((sight) => typeof sight === "number"), [true, false, true, true, true, false]);
  assertLess(added, 100, "the limit was met where it was expected");
  assertGreater(inProcess, 2 * most);
  assertLess(inProcess, limit - 15_000, "thousands are left to V8");
  assertEquals(afterSomeLess, null);
});

Deno.test("at the limit there is room for ten Workers and a heap that grows, and other threads' mappings count", async () => {
  interface Report {
    readonly before: number;
    readonly afterOthers: number;
    readonly others: number;
    readonly error: string;
    readonly inProcess: number;
    readonly afterWorkers: number;
    readonly afterHeap: number;
    readonly heapMegabytes: number;
    readonly limit: number;
  }
  const report = await runChild<Report>("room.ts");
  const { before, afterOthers, others, error, inProcess, afterWorkers, afterHeap, limit } = report;
  assertEquals(error, "LimitError");
  assertLess(Math.abs(before - afterOthers - others), 500, "what another thread maps counts here");
  assertLess(inProcess, limit - 15_000);
  assertGreater(afterWorkers, inProcess + 1000);
  assertGreater(report.heapMegabytes, 250);
  assertLess(afterHeap, limit);
});

kvmTest("when memory slots run out, ranges are joined, and after that nothing changes", async () => {
  interface Report {
    readonly capacity: number;
    readonly pieces: number;
    readonly tooMany: Refused;
    readonly taken: Refused & { readonly retried: Failure | null };
    readonly full: { readonly slots: number; readonly seen: readonly Sight[] };
    readonly oneMore: Refused;
    readonly inPlace: Failure | null;
    readonly afterOneLess: Failure | null;
    readonly seen: readonly Sight[];
  }
  const { capacity, pieces, tooMany, taken, full, oneMore, inPlace, afterOneLess, seen } = await runChild<Report>(
    "slots.ts",
  );
  const limit = (have: number, want: number) => ({ limit: "memory slots", have, want });
  assertEquals([tooMany.error?.limit, tooMany.same], [limit(capacity, pieces), true]);
  // The manager cannot know that somebody else took one: KVM refuses the last of thousands, and all of them go again.
  assertEquals(taken.error?.cause?.os, "KVM_SET_USER_MEMORY_REGION EINVAL");
  assertStringIncludes(taken.error?.message ?? "", `all ${capacity + 1} slots are in use`);
  assertEquals([taken.error?.outOfStep, taken.same, taken.retried], [0, true, null]);
  const pages = [0, 1, capacity - 2, capacity - 1, capacity, pieces - 1];
  assertEquals(full, { slots: capacity + 1, seen: pages.map((page) => stamp(1, page)) });
  assertEquals([oneMore.error?.limit, oneMore.same], [limit(capacity, capacity + 1), true]);
  assertEquals([inPlace, afterOneLess], [null, null]);
  assertEquals(seen, [stamp(1, 1), stamp(1, 0), "mmio"]);
});

kvmTest("a slot that somebody else made is in the way, and everything is as before", async () => {
  type What = "overlap" | "exchange" | "number";
  const { size, ...attempts } = await runChild<Record<What, Attempt> & { size: Attempt }>("foreign_slots.ts");
  for (const [what, attempt] of Object.entries(attempts)) {
    assertAllOrNothing(attempt, what);
    const code = what === "number" ? "EINVAL" : "EEXIST";
    assertEquals(attempt.error?.cause?.os, `KVM_SET_USER_MEMORY_REGION ${code}`, what);
    assertEquals(attempt.error?.outOfStep, 0, what);
  }
  assertEquals(attempts.overlap.finally.guest, [...stamps(1, 0, 3), "mmio", ...stamps(1, 4, 3), "mmio"]);
  assertEquals(attempts.exchange.before.guest, [...stamps(1, 0, 4), "mmio", "mmio"]);
  assertEquals(attempts.exchange.finally.guest, stamps(2, 0, 6));
  assertEquals(attempts.number.finally.guest, [...stamps(1, 0, 4), "mmio"]);
  assertEquals(size.error?.cause?.os, "KVM_SET_USER_MEMORY_REGION EINVAL");
  assertEquals(size.after, size.before);
});

kvmTest("without a file descriptor left, what needs one says so, and regions go on", async () => {
  interface Held {
    readonly fds: number;
    readonly files: number;
  }
  interface Report {
    readonly before: Held;
    readonly failures: Readonly<Record<string, Failure | null>>;
    readonly after: Held;
    readonly requests: Failure | null;
    readonly seen: { readonly guest: readonly Sight[]; readonly late: readonly Sight[] };
    readonly retried: Readonly<Record<string, Failure | null>>;
  }
  const { before, failures, after, requests, seen, retried } = await runChild<Report>("descriptors.ts");
  assertEquals(Object.keys(failures).length, 9);
  for (const [what, error] of Object.entries(failures)) {
    assertEquals([error?.name, error?.os?.split(" ").at(-1)], ["OsError", "EMFILE"], what);
  }
  assertEquals(after, before, "what failed left nothing behind");
  assertEquals([...new Set(Object.values(retried))], [null]);
  assertEquals(requests, null);
  const expected: Sight[] = [stamp(1, 0), stamp(2, 0), stamp(1, 2), "mmio", 0, "mmio"];
  assertEquals(seen, { guest: expected, late: expected });
});

kvmTest("memory that may not be locked fails what wants it pinned, and pins are as before", async () => {
  interface Report {
    readonly lockedAtFirst: number;
    readonly region: Attempt;
    readonly lockedThen: number;
    readonly partition: Attempt;
    readonly tight: Attempt;
    readonly lockedAtLast: number;
  }
  const { lockedAtFirst, region, lockedThen, partition, tight, lockedAtLast } = await runChild<Report>("pinned.ts");
  assertAllOrNothing(region, "region");
  assertEquals(region.error?.cause?.os, "mlock ENOMEM");
  assertEquals([lockedAtFirst, lockedThen], [0x1_0000, 0x1_0000 + 3 * 0x8000]);
  assertAllOrNothing(partition, "partition");
  assertEquals(partition.error?.cause?.os, "mlock EPERM");
  assertEquals([region.error?.outOfStep, partition.error?.outOfStep], [0, 0]);
  assertEquals(partition.finally.locked - partition.before.locked, 64);

  // Where the limit was lowered below what is in use, not even the old memory can be pinned again, and the error says
  // so. Its contents are there all the same.
  assertEquals([tight.error?.cause?.os, tight.error?.outOfStep], ["mlock EPERM", 1]);
  assertEquals(tight.after.model.outOfStep, ["0x100000-0x108000"]);
  assertEquals([tight.after.guest, tight.after.bytes], [tight.before.guest, tight.before.bytes]);
  assertEquals([tight.after.slots, tight.after.vmas], [tight.before.slots, tight.before.vmas]);
  assertEquals([tight.retried, tight.finally.guest], [null, stamps(2, 0, 2)]);
  assertEquals([tight.finally.model.outOfStep, tight.finally.locked], [[], tight.before.locked]);
  assertEquals(lockedAtLast, tight.before.locked * 1024);
});

testUnless(
  noKvm ?? noHugePageFiles,
  "huge pages that there are not: no file, and no harm to live memory that they were to replace",
  async () => {
    interface Report {
      readonly wanted: number;
      readonly creation: Failure | null;
      readonly before: Snapshot;
      readonly errors: readonly (Failure | null)[];
      readonly after: Snapshot;
      readonly stored: string;
      readonly read: number;
    }
    const { wanted, creation, before, errors, after, stored, read } = await runChild<Report>("huge_pages.ts");
    assertEquals(creation?.name, "OsError");
    assertStringIncludes(creation?.message ?? "", `fewer than ${wanted} free huge pages`);
    assertStringIncludes(creation?.message ?? "", "/proc/sys/vm/nr_hugepages");
    for (const error of errors) {
      assertEquals([error?.name, error?.cause?.os, error?.outOfStep], ["MappingError", "mmap ENOMEM", 0]);
    }
    assertEquals(after, before);
    const hole: Sight[] = ["mmio", "mmio"];
    assertEquals(after.guest, [...stamps(1, 0, 2), ...hole, ...stamps(1, 0, 2), ...hole]);
    assertEquals([stored, read], ["stored", 77]);
  },
);

kvmTest("a file that is shortened or sealed behind the manager's back ends in errors, and nobody dies", async () => {
  interface Look {
    readonly guest: readonly Sight[];
    readonly host: readonly string[];
  }
  interface Report {
    readonly whole: Look;
    readonly shortened: Look;
    readonly store: string;
    readonly again: Failure | null;
    readonly restored: Look;
    readonly seal: { readonly before: Snapshot; readonly error: Failure | null; readonly after: Snapshot };
    readonly seen: readonly Sight[];
  }
  const { whole, shortened, store, again, restored, seal, seen } = await runChild<Report>("changed_files.ts");
  assertEquals(whole, { guest: [1, 2, 3, 4], host: ["read", "read", "read", "read"] });
  assertEquals(shortened.guest, [1, 2, "fault", "fault"]);
  assertEquals(shortened.host, ["read", "read", "GuestMemoryError", "GuestMemoryError"]);
  assertEquals([store, again?.name], ["fault", "MappingError"]);
  assertEquals(restored, { guest: [1, 2, 0, 0], host: whole.host });

  assertEquals([seal.error?.cause?.os, seal.error?.outOfStep], ["mmap EPERM", 0]);
  assertEquals(seal.after, seal.before);
  assertEquals(seal.after.guest, stamps(1, 0, 4));
  assertEquals(seen, [stamp(1, 8), "mmio", 9, 0]);
});
