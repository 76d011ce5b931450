import { assertEquals } from "@std/assert";
import { GuestMemoryManager, type Mappable, type RegionHandle } from "membacking";
import { Kvm, KvmCap } from "membacking/kvm";
import { KVM_X86_QUIRK_SLOT_ZAP_ALL } from "../../ffi/kvm/constants.ts";
import { kvmTest } from "../support/require.ts";
import { Machine, stamp, stampedFile, stamps } from "./machine.ts";
import { type Mode, MODES, Witness } from "./witness.ts";
import { PAGE, range } from "../support/units.ts";

/** Registers a test for guests of both modes. */
function guestTest(name: string, test: (mode: Mode) => void): void {
  for (const mode of MODES) kvmTest(`${name} (${mode} guest)`, () => test(mode));
}

function mmio(count: number): "mmio"[] {
  return Array.from({ length: count }, () => "mmio");
}

function wordIn(file: Mappable, offset: number): number {
  const bytes = new Uint8Array(4);
  file.read(offset, bytes);
  return new DataView(bytes.buffer).getUint32(0, true);
}

guestTest("a guest finds a region's memory while it is mapped, and nothing before and after", (mode) => {
  using machine = new Machine();
  const guest = machine.attached({ mode });
  const see = () => guest.pages(0x1000, 0x5000);
  assertEquals(see(), mmio(4));
  const region = machine.region(0x2000, 0x4000);
  assertEquals(see(), mmio(4));
  region.addMapping({ rangeInRegion: range(0, 0x2000), mappable: machine.file(7), fileOffset: 0x3000 });
  assertEquals(see(), mmio(4));
  region.map();
  assertEquals(see(), ["mmio", stamp(7, 3), stamp(7, 4), "mmio"]);
  region.unmap();
  assertEquals(see(), mmio(4));
  region.map();
  assertEquals(see(), ["mmio", stamp(7, 3), stamp(7, 4), "mmio"]);
  region[Symbol.dispose]();
  assertEquals(see(), mmio(4));
  assertEquals(guest.slots, []);
});

guestTest("what a guest stores is in the file and in guest memory, and the other way round", (mode) => {
  using machine = new Machine();
  const guest = machine.attached({ mode });
  const file = machine.file(1);
  machine.backed(0x8000, 0xa000, file, { fileOffset: 0x4000 });
  assertEquals(guest.store(0x9ffc, 0xdead_beef), "stored");
  assertEquals([wordIn(file, 0x5ffc), machine.regions.memory.readUint32(0x9ffc)], [0xdead_beef, 0xdead_beef]);
  machine.regions.memory.writeUint32(0x9004, 0x1234_5678);
  file.write(0x4008, new Uint8Array([1, 2, 3, 4]));
  assertEquals(guest.look([0x9004, 0x8008]), [0x1234_5678, 0x0403_0201]);
});

guestTest("of three regions a guest sees the highest that is mapped", (mode) => {
  using machine = new Machine();
  const guest = machine.attached({ mode });
  const regions = [1, 2, 3].map((tag) => machine.backed(0, 0x2000, machine.file(tag), { priority: tag }));
  const [low, middle, high] = regions as [RegionHandle, RegionHandle, RegionHandle];
  const see = () => guest.pages(0, 0x2000);
  assertEquals(see(), stamps(3, 0, 2));
  middle.unmap();
  assertEquals(see(), stamps(3, 0, 2));
  high.unmap();
  assertEquals(see(), stamps(1, 0, 2));
  middle.map();
  assertEquals(see(), stamps(2, 0, 2));
  high.map();
  assertEquals(see(), stamps(3, 0, 2));
  high[Symbol.dispose]();
  assertEquals(see(), stamps(2, 0, 2));
  middle[Symbol.dispose]();
  assertEquals(see(), stamps(1, 0, 2));
  low[Symbol.dispose]();
  assertEquals(see(), mmio(2));
});

guestTest("of two regions with one priority and one range a guest sees the older one", (mode) => {
  using machine = new Machine();
  const guest = machine.attached({ mode });
  const younger = () => machine.backed(0, 0x1000, machine.file(2));
  const older = machine.backed(0, 0x1000, machine.file(1));
  const second = younger();
  assertEquals(guest.load(0), stamp(1, 0));
  older.unmap();
  assertEquals(guest.load(0), stamp(2, 0));
  older.map();
  assertEquals(guest.load(0), stamp(1, 0), "mapping again does not make it younger");
  older[Symbol.dispose]();
  assertEquals(guest.load(0), stamp(2, 0));
  second[Symbol.dispose]();
  assertEquals(guest.load(0), "mmio");
});

guestTest("a lower region shows around a smaller one above it, and not through its holes", (mode) => {
  using machine = new Machine({ overlap: "any" });
  const guest = machine.attached({ mode });
  machine.backed(0, 0x8000, machine.file(1));
  const window = machine.region(0x2000, 0x6000, { priority: 1 });
  window.addMapping({ rangeInRegion: range(0x1000, 0x2000), mappable: machine.file(2) });
  window.map();
  const top = machine.backed(0x3000, 0x4000, machine.file(3), { priority: 2 });
  const around = (...inside: (number | "mmio")[]) => [...stamps(1, 0, 2), ...inside, ...stamps(1, 6, 2)];
  assertEquals(guest.pages(0, 0x8000), around("mmio", stamp(3, 0), "mmio", "mmio"));
  top.unmap();
  assertEquals(guest.pages(0, 0x8000), around("mmio", stamp(2, 0), "mmio", "mmio"));
  window.removeMappings(range(0, 0x4000));
  assertEquals(guest.pages(0, 0x8000), around(...mmio(4)));
  window.unmap();
  assertEquals(guest.pages(0, 0x8000), stamps(1, 0, 8));
});

guestTest("a store to read-only memory leaves the guest, and the memory as it was", (mode) => {
  using machine = new Machine();
  const guest = machine.attached({ mode });
  const file = machine.file(1);
  const region = machine.region(0, 0x3000);
  region.addMapping({ rangeInRegion: range(0, 0x3000), mappable: file });
  region.addMapping({ rangeInRegion: range(0x1000, 0x2000), mappable: file, fileOffset: 0x1000, writable: false });
  region.map();
  const tryAll = () => guest.write([0x10, 0x1010, 0x2010].map((gpa) => ({ gpa, word: 0xbad })));
  const now = () => [0x10, 0x1010, 0x2010].map((offset) => wordIn(file, offset));
  assertEquals(tryAll(), ["stored", "mmio", "stored"]);
  assertEquals(now(), [0xbad, stamp(1, 1), 0xbad]);

  machine.regions.memory.writeUint32(0x10, 1);
  machine.regions.memory.writeUint32(0x2010, 2);
  region.map({ writable: false });
  assertEquals(tryAll(), ["mmio", "mmio", "mmio"]);
  assertEquals(now(), [1, stamp(1, 1), 2]);
  assertEquals(guest.look([0x10, 0x1010, 0x2010]), now(), "reads go on");

  region.map({ writable: true });
  assertEquals(tryAll(), ["stored", "mmio", "stored"]);
  region.addMapping({ rangeInRegion: range(0x1000, 0x2000), mappable: file, fileOffset: 0x1000 });
  assertEquals(tryAll(), ["stored", "stored", "stored"]);
});

guestTest("mapping over a mapping splits it, and the rest keeps its place in the file", (mode) => {
  using machine = new Machine();
  const guest = machine.attached({ mode });
  const region = machine.backed(0, 0x8000, machine.file(1));
  region.addMapping({ rangeInRegion: range(0x2000, 0x4000), mappable: machine.file(2), fileOffset: 0x5000 });
  assertEquals(guest.pages(0, 0x8000), [...stamps(1, 0, 2), ...stamps(2, 5, 2), ...stamps(1, 4, 4)]);
  region.removeMappings(range(0x3000, 0x6000));
  assertEquals(guest.pages(0, 0x8000), [...stamps(1, 0, 2), stamp(2, 5), ...mmio(3), ...stamps(1, 6, 2)]);
  region.addMapping({ rangeInRegion: range(0x1000, 0x7000), mappable: machine.file(3) });
  assertEquals(guest.pages(0, 0x8000), [stamp(1, 0), ...stamps(3, 0, 6), stamp(1, 7)]);
});

guestTest("a batch moves a region in one go", (mode) => {
  using machine = new Machine();
  const guest = machine.attached({ mode });
  const file = machine.file(4);
  const old = machine.backed(0x10_0000, 0x10_2000, file);
  assertEquals(guest.look([0x10_0000, 0x20_0000]), [stamp(4, 0), "mmio"]);
  machine.regions.batch(() => {
    old[Symbol.dispose]();
    machine.backed(0x20_0000, 0x20_2000, file);
  });
  assertEquals(guest.look([0x10_0000, 0x20_0000]), ["mmio", stamp(4, 0)]);
});

guestTest("one page of a file at two addresses is one page", (mode) => {
  using machine = new Machine();
  const guest = machine.attached({ mode });
  const file = machine.file(5);
  machine.backed(0, 0x1000, file);
  machine.backed(0x8000, 0x9000, file);
  assertEquals(guest.store(0x10, 77), "stored");
  assertEquals(guest.load(0x8010), 77);
});

guestTest("a partition at an offset is the same memory at other addresses", (mode) => {
  using machine = new Machine();
  const plain = machine.attached({ mode });
  const shifted = machine.attached({ mode, offset: 0x100_0000 });
  const region = machine.backed(0x1000, 0x3000, machine.file(1));
  assertEquals(plain.look([0x1000, 0x100_1000]), [stamp(1, 0), "mmio"]);
  assertEquals(shifted.look([0x1000, 0x100_1000]), ["mmio", stamp(1, 0)]);
  assertEquals(shifted.store(0x100_2020, 0xabc), "stored");
  assertEquals(plain.load(0x2020), 0xabc);
  region.map({ writable: false });
  assertEquals([plain.store(0x1000, 1), shifted.store(0x100_1000, 1)], ["mmio", "mmio"]);
  region.unmap();
  assertEquals([plain.load(0x1000), shifted.load(0x100_1000)], ["mmio", "mmio"]);
});

guestTest("an alias is a second window on all of guest memory", (mode) => {
  const ram = [{ ranges: [range(0, 0x20_0000)] }];
  using manager = GuestMemoryManager.create({ maxAddress: 0x80_0000, ram, x86Legacy: true });
  using guest = new Witness({ mode });
  using _attached = manager.attachPartition(guest.vm, { aliasOffset: 0x100_0000 });
  const vga = range(0xa_0000, 0xc_0000);
  assertEquals(guest.store(0xa_1234, 0xaaaa), "stored");
  assertEquals(guest.store(0x10a_5678, 0xbbbb), "stored");
  const spots = [0xa_1234, 0xa_5678, 0x10a_1234, 0x10a_5678];
  assertEquals(guest.look(spots), [0xaaaa, 0xbbbb, 0xaaaa, 0xbbbb]);

  manager.setRamVisibility(vga, "read-only");
  assertEquals(guest.write([{ gpa: 0xa_1234, word: 1 }, { gpa: 0x10a_1234, word: 1 }]), ["mmio", "mmio"]);
  assertEquals(guest.look(spots), [0xaaaa, 0xbbbb, 0xaaaa, 0xbbbb]);
  manager.setRamVisibility(vga, "unmapped");
  assertEquals(guest.look(spots), mmio(4));
  manager.setRamVisibility(vga, "read-write");
  assertEquals(guest.look(spots), [0xaaaa, 0xbbbb, 0xaaaa, 0xbbbb]);
});

guestTest("a partition that comes late sees everything at once, and nothing once it is detached", (mode) => {
  using machine = new Machine();
  const file = machine.file(1);
  machine.backed(0, 0x4000, file, { priority: 1 });
  const hidden = machine.backed(0x1000, 0x2000, machine.file(2));
  machine.backed(0x8000, 0x9000, file, { writable: false });
  const first = machine.attached({ mode });
  const late = machine.witness({ mode });
  const seen = [...stamps(1, 0, 4), ...mmio(4), stamp(1, 0)];
  assertEquals(late.pages(0, 0x9000), mmio(9));
  const attached = machine.regions.addPartition(late.vm);
  assertEquals([late.pages(0, 0x9000), first.pages(0, 0x9000)], [seen, seen]);
  assertEquals([late.store(0x8000, 1), late.store(0x3000, 9)], ["mmio", "stored"]);
  assertEquals(first.load(0x3000), 9);

  attached[Symbol.dispose]();
  assertEquals([late.pages(0, 0x9000), late.slots], [mmio(9), []]);
  assertEquals(first.look([0x3000, 0x8000]), [9, stamp(1, 0)]);
  hidden[Symbol.dispose]();
  using _again = machine.regions.addPartition(late.vm, { offset: 0x10_0000 });
  assertEquals(late.look([0, 0x10_0000, 0x10_3000]), ["mmio", stamp(1, 0), 9]);
});

guestTest("a VM that is disposed is in nobody's way", (mode) => {
  using machine = new Machine();
  const gone = machine.attached({ mode });
  const left = machine.attached({ mode });
  const region = machine.backed(0, 0x2000, machine.file(1));
  gone.vm[Symbol.dispose]();
  region.addMapping({ rangeInRegion: range(0, 0x1000), mappable: machine.file(2), writable: false });
  assertEquals(left.pages(0, 0x2000), [stamp(2, 0), stamp(1, 1)]);
  region.unmap();
  assertEquals(left.pages(0, 0x2000), mmio(2));
});

guestTest("disposing the region manager takes all memory away from its guests", (mode) => {
  using machine = new Machine();
  const guests = [machine.attached({ mode }), machine.attached({ mode, offset: 0x10_0000 })];
  machine.backed(0, 0x4000, machine.file(1));
  machine.backed(0x8000, 0xa000, "private");
  machine.regions[Symbol.dispose]();
  for (const guest of guests) {
    assertEquals(guest.look([0, 0x3000, 0x8000, 0x10_0000, 0x10_8000]), mmio(5));
    assertEquals(guest.slots, []);
  }
});

guestTest("private memory keeps what a guest wrote through everything it allows", (mode) => {
  using machine = new Machine({ overlap: "any" });
  const guest = machine.attached({ mode });
  const region = machine.backed(0, 0x4000, "private");
  assertEquals(guest.pages(0, 0x4000), [0, 0, 0, 0]);
  assertEquals(guest.write([{ gpa: 0, word: 11 }, { gpa: 0x3000, word: 33 }]), ["stored", "stored"]);
  region.map({ writable: false });
  assertEquals([guest.store(0, 12), guest.load(0)], ["mmio", 11]);
  region.unmap();
  assertEquals(guest.pages(0, 0x4000), mmio(4));
  const above = machine.backed(0, 0x1000, machine.file(1), { priority: 1 });
  region.map({ writable: true });
  assertEquals(guest.pages(0, 0x4000), [stamp(1, 0), 0, 0, 33]);
  above[Symbol.dispose]();
  region.removeMappings(range(0x1000, 0x2000));
  assertEquals(guest.pages(0, 0x4000), [11, "mmio", 0, 33]);
  assertEquals(machine.regions.memory.readUint32(0x3000), 33);
});

kvmTest("a hole is an exit by default, and a fault in a window", () => {
  using machine = new Machine();
  const guest = machine.attached();
  for (const [start, holes] of [[0, "exit"], [0x10_0000, "fault"]] as const) {
    const region = machine.region(start, start + 0x4000, { holes });
    region.addMapping({ rangeInRegion: range(0x1000, 0x2000), mappable: machine.file(1) });
    region.addMapping({ rangeInRegion: range(0x2000, 0x3000), mappable: machine.file(2), writable: false });
    region.map();
    const hole = holes === "exit" ? "mmio" : "fault";
    assertEquals(guest.pages(start, start + 0x4000), [hole, stamp(1, 0), stamp(2, 0), hole]);
    const stores = [0, 0x1000, 0x2000, 0x3000].map((at) => ({ gpa: start + at, word: 5 }));
    // In a window the slot can be written, and it is the host's page that cannot.
    assertEquals(guest.write(stores), [hole, "stored", holes === "exit" ? "mmio" : "fault", hole]);
    assertEquals(machine.regions.memory.readUint32(start + 0x2000), stamp(2, 0));
  }
});

kvmTest("a guest that faulted at a hole goes on once memory is there", () => {
  using machine = new Machine();
  const guest = machine.attached();
  const window = machine.region(0, 0x4000, { holes: "fault" });
  window.map();
  const slots = guest.slots;
  let faults = 0;
  guest.onFault = () => {
    const at = faults++ * PAGE;
    window.addMapping({ rangeInRegion: range(at, at + PAGE), mappable: machine.file(9), fileOffset: at });
  };
  assertEquals(guest.pages(0, 0x4000), stamps(9, 0, 4));
  assertEquals([faults, guest.slots], [4, slots]);
  assertEquals(guest.store(0x3000, 1), "stored");
});

kvmTest("a native guest sees memory far above 4 GiB", () => {
  const far = 2 ** 36 + 0x20_0000;
  using machine = new Machine({ length: 2 ** 37 });
  const guest = machine.attached({ more: [{ start: far, end: far + 0x40_0000 }] });
  const region = machine.backed(far + 0x1000, far + 0x3000, machine.file(6));
  assertEquals(guest.pages(far, far + 0x4000), ["mmio", ...stamps(6, 0, 2), "mmio"]);
  assertEquals(guest.store(far + 0x2ffc, 0xf00d), "stored");
  assertEquals(machine.regions.memory.readUint32(far + 0x2ffc), 0xf00d);
  region.unmap();
  assertEquals(guest.load(far + 0x1000), "mmio");
});

/** Whether KVM can delete a slot and keep what it has mapped of others. */
function canSpareSlots(): boolean {
  using kvm = Kvm.open();
  return (kvm.checkExtension(KvmCap.DISABLE_QUIRKS2) & KVM_X86_QUIRK_SLOT_ZAP_ALL) !== 0;
}

for (const zapAllOnSlotDelete of [true, false]) {
  kvmTest(`a guest sees no slot that is gone, zapAllOnSlotDelete ${zapAllOnSlotDelete}`, () => {
    using machine = new Machine();
    const guest = machine.attached({ zapAllOnSlotDelete });
    assertEquals(guest.vm.zapsAllOnSlotDelete, zapAllOnSlotDelete || !canSpareSlots());
    const big = machine.backed(0x20_0000, 0x60_0000, machine.file(1, 0x40_0000));
    const file = machine.file(2);
    const small = machine.backed(0, 0x2000, file);
    const all = stamps(1, 0, 1024);
    assertEquals(guest.pages(0x20_0000, 0x60_0000), all);
    for (let round = 0; round < 20; round++) {
      assertEquals(guest.pages(0, 0x2000), stamps(2, 0, 2));
      small.unmap();
      assertEquals(guest.pages(0, 0x2000), mmio(2));
      assertEquals(guest.store(0x20_0000, stamp(1, 0)), "stored");
      using other = stampedFile(100 + round, 0x2000);
      small.addMapping({ rangeInRegion: range(0, 0x1000), mappable: other, writable: false });
      small.map();
      assertEquals(guest.pages(0, 0x2000), [stamp(100 + round, 0), stamp(2, 1)]);
      assertEquals(guest.store(0, 0), "mmio");
      small.addMapping({ rangeInRegion: range(0, 0x1000), mappable: file });
    }
    assertEquals(guest.pages(0x20_0000, 0x60_0000), all);
    big.unmap();
    assertEquals(guest.look([0x20_0000, 0x5f_f000]), mmio(2));
    big.map();
    assertEquals(guest.pages(0x20_0000, 0x60_0000), all);
  });
}
