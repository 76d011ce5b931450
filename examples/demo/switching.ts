import { Mappable, MappingError, MemoryRange, RegionManager, VaMapper } from "membacking";
import { Faults, RecordingDmaTarget } from "membacking/testing";
import { caught, holds, loads, stores } from "./claims.ts";
import { CountingPartition } from "./counting_partition.ts";
import { type Guest, KvmGuest } from "./guest.ts";
import { race } from "./race.ts";
import { claim, picture, say, scene } from "./stage.ts";
import { toWord } from "./word.ts";

const KIB = 1024;
const RAM = 128 * KIB;
const SWITCHES = 2000;

/**
 * Regions that are mapped, unmapped and switched, seen by a guest each time. `onReady` is waited for as soon as there
 * is a manager of them.
 */
export async function showSwitching(guest: Guest, onReady: (regions: RegionManager) => Promise<void>): Promise<void> {
  using va = VaMapper.reserve(RAM);
  using regions = new RegionManager(va, { overlap: "any" });
  await onReady(regions);
  const vm = new CountingPartition(guest.partition);
  using _attached = regions.addPartition(vm);

  scene("1  RAM");
  say("A memfd of 128 KiB is mapped at 0.");
  using ramFile = Mappable.memfd("ram", RAM);
  ramFile.write(0x8000, toWord("ram!".repeat(2 * KIB)));
  using ram = regions.newRegion({ name: "ram", range: new MemoryRange(0, RAM), priority: 0 });
  ram.addMapping({ rangeInRegion: new MemoryRange(0, RAM), mappable: ramFile });
  ram.map();
  guest.start(regions);
  loads(guest, 0x8000, "ram!");
  stores(guest, 0x4000, "mine", "reaches memory");
  holds(ramFile, 0x4000, "mine");

  scene("2  A second region on top");
  say("Another memfd, in a region of higher priority. It shows as soon as it is mapped, and not before.");
  using cardFile = Mappable.memfd("card", 8 * KIB);
  cardFile.write(0, toWord("card".repeat(2 * KIB)));
  using card = regions.newRegion({
    name: "card",
    range: MemoryRange.of(0x8000, 8 * KIB),
    priority: 10,
    type: "device",
  });
  card.addMapping({ rangeInRegion: new MemoryRange(0, 8 * KIB), mappable: cardFile });
  loads(guest, 0x8000, "ram!");
  const callsBefore = vm.calls;
  card.map();
  loads(guest, 0x8000, "card", "card.map()");
  stores(guest, 0x8004, "keep", "reaches memory");
  holds(cardFile, 4, "keep");
  claim("slot changes this needed", `${vm.calls - callsBefore}`, "0");
  say("The memory slot stayed: one mmap over the old memory is all it took, so a guest cannot fall in between.");

  scene("3  Read-only memory");
  say("A third memfd. The guest can load from it; a store leaves the guest and reaches the VMM instead.");
  using romFile = Mappable.memfd("rom", 8 * KIB);
  romFile.write(0, toWord("rom!"));
  using rom = regions.newRegion({ name: "rom", range: MemoryRange.of(0xe000, 8 * KIB), priority: 20 });
  rom.addMapping({ rangeInRegion: new MemoryRange(0, 8 * KIB), mappable: romFile });
  rom.map({ writable: false });
  loads(guest, 0xe000, "rom!", "rom.map()");
  stores(guest, 0xe000, "evil", `is an MMIO exit, "evil" at 0xe000`);
  holds(romFile, 0, "rom!");
  picture(regions.inspect());

  scene("4  What was below comes back, and what was on top is kept");
  card.unmap();
  loads(guest, 0x8000, "ram!", "card.unmap()");
  rom.unmap();
  stores(guest, 0xe000, "free", "reaches memory", "rom.unmap()");
  card.map();
  loads(guest, 0x8004, "keep", "card.map()");

  scene("5  A hole");
  say('One page of RAM is taken out. A load from it leaves the guest, and the VMM answers it with "mmio".');
  ram.removeMappings(MemoryRange.of(0x4000, 4 * KIB));
  loads(guest, 0x4000, "mmio", "removeMappings()");
  picture(regions.inspect());
  ram.addMapping({ rangeInRegion: MemoryRange.of(0x4000, 4 * KIB), mappable: ramFile, fileOffset: 0x4000 });
  loads(guest, 0x4000, "mine", "addMapping()");

  scene("6  A request that fails");
  say("A device that does DMA joins in. It refuses what it is told when half of card.unmap() is done.");
  const faults = new Faults();
  const nic = new RecordingDmaTarget({ name: "nic", faults });
  using _dma = regions.addDmaTarget(nic);
  const before = JSON.stringify(regions.inspect());
  faults.failAfter(0, { on: ({ method }) => method === "mapDma" });
  const error = caught(MappingError, () => card.unmap());
  claim("card.unmap() throws", error?.name ?? "nothing", "MappingError");
  if (error) say(error.message, " ".repeat(6));
  loads(guest, 0x8000, "card");
  claim(
    "the memory map",
    JSON.stringify(regions.inspect()) === before ? "is as before" : "has changed",
    "is as before",
  );

  scene("7  A switch under a running guest");
  if (guest instanceof KvmGuest) {
    say(
      "A second processor reads the second page of the card over and over at full speed, while card is unmapped and " +
        `mapped ${SWITCHES / 2} times.`,
    );
    const callsBefore = vm.calls;
    let micros = 0;
    const seen = await race(guest.vm, regions, MemoryRange.of(0x9000, 4 * KIB), ["card", "ram!"], () => {
      const start = performance.now();
      for (let i = 0; i < SWITCHES / 2; i++) {
        card.unmap();
        card.map();
      }
      micros = (performance.now() - start) * 1000 / SWITCHES;
    });
    claim("it has seen the card", `${seen.first > 0}`, "true");
    claim("it has seen the RAM below", `${seen.second > 0}`, "true");
    claim("it has seen anything else", `${seen.other > 0}`, "false");
    claim("it had to leave for the VMM", `${seen.leftEarly}`, "false");
    claim("slot changes this needed", `${vm.calls - callsBefore}`, "0");
    const loads = (seen.first + seen.second).toLocaleString("en-US");
    say(`${SWITCHES} switches of ${micros.toFixed(0)} µs, ${loads} loads: each found one or the other.`);
  } else {
    say("Left out: it takes a guest.");
  }
}
