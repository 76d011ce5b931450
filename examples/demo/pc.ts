import { GuestMemoryManager, Mappable, MemoryLockedError, MemoryRange, RegionOverlapError } from "membacking";
import { RecordingDmaTarget } from "membacking/testing";
import { caught, holds, loads, stores } from "./claims.ts";
import type { Guest } from "./guest.ts";
import { claim, picture, say, scene } from "./stage.ts";
import { toWord } from "./word.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const RAM = 32 * MIB;
const LOW = new MemoryRange(0, 0xa_0000);
const RING = MemoryRange.of(0x9_8000, 32 * KIB);
const VGA = new MemoryRange(0xa_0000, 0xc_0000);
const BIOS = new MemoryRange(0xf_0000, MIB);

/**
 * What a chipset and a graphics card do with the memory of a PC, and everything that `inspect()` says about it.
 * `onReady` is waited for as soon as there is memory.
 */
export async function showPc(guest: Guest, onReady: (memory: GuestMemoryManager) => Promise<void>): Promise<void> {
  scene("1  RAM, with the ranges that a chipset switches");
  say("32 MiB in one memfd. The VGA window, the BIOS area and all in between are regions of their own.");
  using pc = GuestMemoryManager.create({
    maxAddress: 4096 * MIB,
    ram: [{ ranges: [new MemoryRange(0, RAM)] }],
    x86Legacy: true,
  });
  await onReady(pc);
  using _attached = pc.attachPartition(guest.partition);
  guest.start(pc.regions);
  pc.memory.write(VGA.start, toWord("ram!"));
  pc.memory.write(BIOS.start, toWord("bios"));
  claim("RAM ranges that can be switched", `${pc.ramRanges.length}`, "16");
  loads(guest, VGA.start, "ram!");
  pc.setRamVisibility(VGA, "unmapped");
  loads(guest, VGA.start, "mmio", "unmapped");
  pc.setRamVisibility(BIOS, "read-only");
  stores(guest, BIOS.start, "evil", 'is an MMIO exit, "evil" at 0xf0000', "read-only");
  loads(guest, BIOS.start, "bios");

  scene("2  A graphics card");
  say("A BAR of 16 MiB, of which a memfd backs the first half. The guest puts it where it likes, and the VMM follows.");
  using pixels = Mappable.memfd("pixels", 8 * MIB);
  pixels.write(0, toWord("pix1"));
  const screen = pc.newDeviceMemory("screen", 16 * MIB);
  screen.map({ offset: 0, mappable: pixels, length: 8 * MIB });
  screen.mapToGuest(0xd000_0000, true);
  loads(guest, 0xd000_0000, "pix1", "mapToGuest()");
  screen.mapToGuest(0xe000_0000, true);
  loads(guest, 0xd000_0000, "mmio", "moved");
  stores(guest, 0xe000_0000, "pix2", "reaches memory");
  holds(pixels, 0, "pix2");
  loads(guest, 0xe080_0000, "mmio");
  const overlap = caught(RegionOverlapError, () => screen.mapToGuest(RAM - 8 * MIB, true));
  claim("a move half onto RAM throws", overlap?.name ?? "nothing", "RegionOverlapError");
  loads(guest, 0xe000_0000, "pix2");

  scene("3  Memory that is held");
  say("A device does DMA, the host brings RAM in ahead of use, and a back end works on a ring in place.");
  const nic = new RecordingDmaTarget({ name: "nic" });
  using _dma = pc.regions.addDmaTarget(nic);
  let done = 0;
  await pc.prefault({ onProgress: (bytes) => done = bytes });
  claim("prefault() went through", `${done / MIB} MiB`, `${RAM / MIB} MiB`);
  using ring = pc.memory.lock(RING, { write: true });
  ring.bytes.set(toWord("ring"));
  loads(guest, RING.start, "ring");
  const locked = caught(MemoryLockedError, () => pc.setRamVisibility(LOW, "unmapped"));
  claim("taking it away throws", locked?.name ?? "nothing", "MemoryLockedError");
  loads(guest, RING.start, "ring");

  scene("4  All that inspect() knows");
  const map = pc.inspect();
  picture(map);
  claim("it survives JSON", `${JSON.stringify(JSON.parse(JSON.stringify(map))) === JSON.stringify(map)}`, "true");
  const touched = RAM - VGA.length;
  claim("it finds what is mapped of the RAM in memory", `${(map.usage?.shared ?? touched) >= touched}`, "true");
}
