/**
 * Switches memory under a guest, and lets the guest tell what it sees.
 *
 * `deno task demo` needs --allow-ffi and nothing else. With `--no-kvm` it shows what it shows where there is no KVM.
 *
 * @module
 */

import { Mappable, MappingError, MemoryRange, OsError, RegionManager, VaMapper } from "membacking";
import { Faults, RecordingDmaTarget } from "membacking/testing";
import { CountingPartition } from "./demo/counting_partition.ts";
import { type Guest, KvmGuest } from "./demo/guest.ts";
import { race } from "./demo/race.ts";
import { banner, claim, claims, gap, picture, say, scene } from "./demo/stage.ts";
import { StandIn } from "./demo/stand_in.ts";
import { fromWord, toWord } from "./demo/word.ts";

const KIB = 1024;
const RAM = 128 * KIB;
const SWITCHES = 2000;

say("membacking demo: memory is switched under a guest", "");
using guest = openGuest();
gap();
say(
  `The ${guest.who} loads or stores four bytes wherever we tell it to, and says what it got. In between we change ` +
    "the memory map. A ✓ says that what happened is what had to happen.",
);

using va = VaMapper.reserve(RAM);
using regions = new RegionManager(va, { overlap: "any" });
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
loads(0x8000, "ram!");
stores(0x4000, "mine", "reaches memory");
holds(ramFile, 0x4000, "mine");

scene("2  A second region on top");
say("Another memfd, in a region of higher priority. It shows as soon as it is mapped, and not before.");
using cardFile = Mappable.memfd("card", 8 * KIB);
cardFile.write(0, toWord("card".repeat(2 * KIB)));
using card = regions.newRegion({ name: "card", range: MemoryRange.of(0x8000, 8 * KIB), priority: 10, type: "device" });
card.addMapping({ rangeInRegion: new MemoryRange(0, 8 * KIB), mappable: cardFile });
loads(0x8000, "ram!");
const callsBefore = vm.calls;
card.map();
loads(0x8000, "card", "card.map()");
stores(0x8004, "keep", "reaches memory");
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
loads(0xe000, "rom!", "rom.map()");
stores(0xe000, "evil", `is an MMIO exit, "evil" at 0xe000`);
holds(romFile, 0, "rom!");
picture(regions.inspect());

scene("4  What was below comes back, and what was on top is kept");
card.unmap();
loads(0x8000, "ram!", "card.unmap()");
rom.unmap();
stores(0xe000, "free", "reaches memory", "rom.unmap()");
card.map();
loads(0x8004, "keep", "card.map()");

scene("5  A hole");
say('One page of RAM is taken out. A load from it leaves the guest, and the VMM answers it with "mmio".');
ram.removeMappings(MemoryRange.of(0x4000, 4 * KIB));
loads(0x4000, "mmio", "removeMappings()");
picture(regions.inspect());
ram.addMapping({ rangeInRegion: MemoryRange.of(0x4000, 4 * KIB), mappable: ramFile, fileOffset: 0x4000 });
loads(0x4000, "mine", "addMapping()");

scene("6  A request that fails");
say("A device that does DMA joins in. It refuses what it is told when half of card.unmap() is done.");
const faults = new Faults();
const nic = new RecordingDmaTarget({ name: "nic", faults });
using _dma = regions.addDmaTarget(nic);
const before = JSON.stringify(regions.inspect());
faults.failAfter(0, { on: ({ method }) => method === "mapDma" });
const error = caught(() => card.unmap());
claim("card.unmap() throws", error?.name ?? "nothing", "MappingError");
if (error) say(error.message, " ".repeat(6));
loads(0x8000, "card");
claim("the memory map", JSON.stringify(regions.inspect()) === before ? "is as before" : "has changed", "is as before");

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

gap();
const ran = guest instanceof KvmGuest ? "" : " NO GUEST RAN, see the top.";
say(`${claims.made} claims checked, ${claims.broken} broken.${ran}`, "");
if (claims.broken > 0) Deno.exitCode = 1;

/** Opens a guest in a virtual machine; where there is no KVM, something that stands in for it. */
function openGuest(): Guest {
  const standIn = "A recording partition stands in for the virtual machine, the host for the guest.";
  try {
    if (!Deno.args.includes("--no-kvm")) return new KvmGuest();
    banner(["NO GUEST RUNS: --no-kvm was given.", standIn]);
  } catch (error) {
    if (!(error instanceof OsError)) throw error;
    banner(["NO GUEST RUNS: this machine has no KVM that can be used.", error.message, standIn]);
  }
  return new StandIn();
}

function loads(gpa: number, word: string, after?: string): void {
  claim(`${after ? `${after}, then ` : ""}${guest.who} loads ${hex(gpa)}`, guest.load(gpa), fromWord(toWord(word)));
}

function stores(gpa: number, word: string, fate: string, after?: string): void {
  claim(`${after ? `${after}, then ` : ""}${guest.who} stores "${word}" at ${hex(gpa)}`, guest.store(gpa, word), fate);
}

function holds(file: Mappable, offset: number, word: string): void {
  const bytes = new Uint8Array(4);
  file.read(offset, bytes);
  claim(`the file behind it, at ${hex(offset)}`, fromWord(bytes), fromWord(toWord(word)));
}

function caught(request: () => void): MappingError | undefined {
  try {
    request();
  } catch (error) {
    if (error instanceof MappingError) return error;
    throw error;
  }
  return undefined;
}

function hex(address: number): string {
  return `0x${address.toString(16)}`;
}
