import { assertEquals, assertGreaterOrEqual, assertStringIncludes, assertThrows } from "@std/assert";
import { GuestMemoryManager, Mappable, MappingError, OsError, RamLayoutError } from "membacking";
import { hasTransparentHugepages } from "../../ffi/files/memory_policy.ts";
import { mappingFlags, openFds, readProc } from "../support/proc.ts";
import { HUGE_PAGE, hugePageTest, moreHugePages, noHugePages, noKvm, testUnless } from "../support/require.ts";
import { Machine } from "./machine.ts";
import { range } from "../support/units.ts";

const FREE = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

function free(): number {
  return Number(readProc(FREE));
}

hugePageTest("huge pages are taken from the pool at creation and given back with the manager", 3, () => {
  const before = free();
  {
    using guest = GuestMemoryManager.create({
      maxAddress: 16 * HUGE_PAGE,
      ram: [{ ranges: [range(0, HUGE_PAGE), range(8 * HUGE_PAGE, 10 * HUGE_PAGE)], hugepageSize: HUGE_PAGE }],
    });
    assertEquals(free(), before - 3);
    guest.memory.fill(8 * HUGE_PAGE, 2 * HUGE_PAGE, 7);
    assertEquals(guest.memory.readUint32(10 * HUGE_PAGE - 4), 0x0707_0707);
    assertEquals(guest.shareableRegions().map(({ fileOffset }) => fileOffset), [0, HUGE_PAGE]);
    assertEquals(guest.inspect().usage?.hugetlb, 2 * HUGE_PAGE);
    assertEquals(guest.inspect().ram[0]?.hugepageSize, HUGE_PAGE);
  }
  assertEquals(free(), before);
});

testUnless(noHugePages, "running out of huge pages is an error that names the pool, and leaves nothing behind", () => {
  const [fds, pages] = [openFds(), free() + 1];
  const error = assertThrows(() =>
    GuestMemoryManager.create({
      maxAddress: 1024 * HUGE_PAGE,
      ram: [{ ranges: [range(0, pages * HUGE_PAGE)], hugepageSize: HUGE_PAGE }],
    }), OsError);
  assertStringIncludes(error.message, "/proc/sys/vm/nr_hugepages");
  assertStringIncludes(error.message, `${pages} free huge pages of 0x200000`);
  assertEquals([openFds(), free()], [fds, pages - 1]);
});

hugePageTest("huge pages can come from a NUMA node, and one the host lacks is an error", 1, () => {
  const ram = (hostNumaNode: number) => [{ ranges: [range(0, HUGE_PAGE)], hugepageSize: HUGE_PAGE, hostNumaNode }];
  {
    using guest = GuestMemoryManager.create({ maxAddress: HUGE_PAGE, ram: ram(0) });
    guest.memory.writeUint8(0, 1);
  }
  const error = assertThrows(() => GuestMemoryManager.create({ maxAddress: HUGE_PAGE, ram: ram(70) }), OsError);
  assertEquals([error.syscall, error.code], ["mbind", "EINVAL"]);
  assertGreaterOrEqual(free(), 1);
});

hugePageTest("a huge-page file that exists is used in whole huge pages only", 2, () => {
  using file = Mappable.memfd("saved", 2 * HUGE_PAGE, { hugepageSize: HUGE_PAGE });
  file.write(HUGE_PAGE, new Uint8Array([5]));
  using guest = GuestMemoryManager.create({
    maxAddress: 2 * HUGE_PAGE,
    ram: [{ ranges: [range(0, 2 * HUGE_PAGE)], backing: file, transparentHugepages: true }],
  });
  assertEquals(guest.memory.readUint8(HUGE_PAGE), 5);
  const error = assertThrows(
    () =>
      GuestMemoryManager.create({ maxAddress: 2 * HUGE_PAGE, ram: [{ ranges: [range(0, 0x1000)], backing: file }] }),
    RamLayoutError,
  );
  assertEquals(error.kind, "unaligned-size");
});

hugePageTest("device memory of huge pages moves in whole huge pages only", 1, () => {
  using guest = GuestMemoryManager.create({ maxAddress: 16 * HUGE_PAGE, ram: [] });
  using file = Mappable.memfd("bar", HUGE_PAGE, { hugepageSize: HUGE_PAGE });
  file.write(0, new Uint8Array([6]));
  const bar = guest.newDeviceMemory("bar", 2 * HUGE_PAGE);
  assertThrows(() => bar.map({ offset: 0x1000, mappable: file, length: HUGE_PAGE }), MappingError, "0x1000");
  assertThrows(() => bar.map({ offset: 0, mappable: file, length: 0x1000 }), MappingError, "0x1000");
  bar.map({ offset: HUGE_PAGE, mappable: file, length: HUGE_PAGE });
  bar.mapToGuest(4 * HUGE_PAGE, true);
  assertThrows(() => bar.mapToGuest(8 * HUGE_PAGE + 0x1000, true), MappingError, "0x200000");
  assertEquals(guest.memory.readUint8(5 * HUGE_PAGE), 6);
  bar.mapToGuest(8 * HUGE_PAGE, true);
  assertEquals(guest.memory.readUint8(9 * HUGE_PAGE), 6);
});

testUnless(noKvm ?? noHugePages, "a guest runs from huge pages", () => {
  using _pool = moreHugePages(2);
  using machine = new Machine({
    maxAddress: 4 * HUGE_PAGE,
    ram: [{ ranges: [range(0, 2 * HUGE_PAGE)], hugepageSize: HUGE_PAGE }],
  });
  machine.write(HUGE_PAGE + 0x1000, 0x1234);
  assertEquals(machine.read(HUGE_PAGE + 0x1000), { value: 0x1234, exits: [] });
});

const noTransparentHugePages = hasTransparentHugepages() ? undefined : "the kernel has no transparent huge pages";

testUnless(
  noTransparentHugePages,
  "transparent huge pages are asked for before memory is brought in, and again where it is replaced",
  async () => {
    using guest = GuestMemoryManager.create({
      maxAddress: 8 * HUGE_PAGE,
      ram: [
        { ranges: [range(0, 2 * HUGE_PAGE)], backing: "private", transparentHugepages: true },
        { ranges: [range(2 * HUGE_PAGE, 4 * HUGE_PAGE)], transparentHugepages: false },
        { ranges: [range(4 * HUGE_PAGE, 6 * HUGE_PAGE)], transparentHugepages: true },
      ],
    });
    const { base } = guest.inspect();
    const asked = () =>
      [0, 2, 4].map((page) => mappingFlags(base + page * HUGE_PAGE)).map((flags) =>
        flags.includes("hg") ? "yes" : flags.includes("nh") ? "no" : ""
      );
    assertEquals(asked(), ["yes", "no", "yes"]);
    await guest.prefault();
    // Whether the kernel finds huge pages is its own affair; what it says of them is part of what is in memory.
    const usage = guest.inspect().usage;
    assertGreaterOrEqual(usage?.private ?? 0, usage?.transparentHuge ?? 0);
    const high = range(4 * HUGE_PAGE, 6 * HUGE_PAGE);
    guest.setRamVisibility(high, "unmapped");
    guest.setRamVisibility(high, "read-write");
    assertEquals(asked(), ["yes", "no", "yes"]);
  },
);
