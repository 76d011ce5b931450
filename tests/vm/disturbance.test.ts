import { assert, assertEquals } from "@std/assert";
import type { MemoryRange, RegionHandle } from "membacking";
import { memoryUsage } from "../../ffi/host/smaps.ts";
import { mappings } from "../support/proc.ts";
import { kvmTest } from "../support/require.ts";
import { Machine, Observed, stamp, stamps } from "./machine.ts";
import type { Witness } from "./witness.ts";
import { range } from "../support/units.ts";

/** A machine whose slot changes and holds are one list, in the order they happen. */
class Scene implements Disposable {
  readonly machine: Machine;
  readonly guest: Witness;
  readonly observed: Observed;

  constructor() {
    const hold = (ranges: readonly MemoryRange[]) => {
      this.observed.ioctls.push(`hold ${ranges.join(" ")}`);
      return { [Symbol.dispose]: () => void this.observed.ioctls.push("go on") };
    };
    this.machine = new Machine({ overlap: "any", quiesce: ({ ranges }) => hold(ranges) });
    this.guest = this.machine.witness();
    this.observed = new Observed(this.guest.vm);
    this.machine.regions.addPartition(this.observed);
  }

  /** What happens during `request`. */
  during(request: () => void): string[] {
    this.observed.take();
    request();
    return this.observed.take();
  }

  [Symbol.dispose](): void {
    this.machine[Symbol.dispose]();
  }
}

kvmTest("turning read-only on and off changes one slot and one protection, and nothing else", () => {
  using scene = new Scene();
  const { machine, guest } = scene;
  const { base } = machine.va;
  const file = machine.file(1);
  machine.backed(0, 0x10_0000, machine.file(2));
  const middle = machine.backed(0x10_0000, 0x14_0000, file);
  machine.backed(0x14_0000, 0x18_0000, file, { fileOffset: 0x4_0000, writable: false });
  machine.backed(0x20_0000, 0x24_0000, "private");
  // Brings the pages in, so that a mapping made anew would show by its empty page table.
  machine.regions.memory.read(0x10_0000, 0x4_0000);
  const vmas = () => mappings(base, base + 0x40_0000);
  const resident = () => memoryUsage(base + 0x10_0000, 0x4_0000)?.resident;
  const [slotsBefore, vmasBefore, residentBefore] = [guest.slots, vmas(), resident()];
  const isMiddle = (slot: string) => slot.includes(": 0x100000-0x140000 ");
  assert(residentBefore !== undefined && residentBefore >= 0x4_0000);

  const off = scene.during(() => middle.map({ writable: false }));
  assertEquals(off, [
    ...["hold 0x100000-0x140000", "unmap 0x100000-0x140000", "map 0x100000-0x140000 ro", "go on"],
  ]);
  assertEquals(
    guest.slots.map((slot) => isMiddle(slot) ? slot.replace(" ro ", " rw ") : slot),
    slotsBefore,
    "the slot has its number and its address again, and the others were left alone",
  );
  assertEquals(resident(), residentBefore, "the memory was protected and not mapped anew");
  // The kernel joins mappings of one file that touch and have the same protection.
  const joined = vmas().find(({ start }) => start === base + 0x10_0000);
  assertEquals([joined?.end, joined?.access], [base + 0x18_0000, "r--s"]);

  const on = scene.during(() => middle.map({ writable: true }));
  assertEquals(on, [
    ...["hold 0x100000-0x140000", "unmap 0x100000-0x140000", "map 0x100000-0x140000 rw", "go on"],
  ]);
  assertEquals([guest.slots, vmas(), resident()], [slotsBefore, vmasBefore, residentBefore]);
});

kvmTest("removing a mapping deletes its slot alone, and puts it back the same", () => {
  using scene = new Scene();
  const { machine, guest } = scene;
  const region = machine.region(0, 0x8_0000);
  const part = (i: number) => range(i * 0x1_0000, (i + 1) * 0x1_0000);
  for (let i = 0; i < 8; i++) {
    region.addMapping({ rangeInRegion: part(i), mappable: machine.file(i), fileOffset: part(i).start });
  }
  region.map();
  const before = guest.slots;
  assertEquals(before.length, 8);
  assertEquals(scene.during(() => region.removeMappings(part(3))), [`unmap ${part(3)}`]);
  assertEquals(guest.slots, before.filter((_, i) => i !== 3));
  const add = () => region.addMapping({ rangeInRegion: part(3), mappable: machine.file(9) });
  assertEquals(scene.during(add), [`map ${part(3)} rw`]);
  assertEquals(guest.slots, before);
});

kvmTest("the hook is called around the changes a guest could see half done, and around no others", () => {
  using scene = new Scene();
  const { machine } = scene;
  const [a, b] = [machine.file(1), machine.file(2)];
  const check = (what: string, expected: string[], request: () => void) =>
    assertEquals(scene.during(request), expected, what);
  const put = (region: RegionHandle, start: number, end: number, mappable = b, writable = true) =>
    region.addMapping({ rangeInRegion: range(start, end), mappable, fileOffset: start, writable });

  const region = machine.region(0, 0x8000);
  check("a mapping in an unmapped region", [], () => put(region, 0, 0x4000, a));
  check("memory where none was", ["map 0x0-0x4000 rw"], () => region.map());
  check("more of it", ["map 0x4000-0x8000 rw"], () => put(region, 0x4000, 0x8000));
  check("other memory in a slot", [], () => put(region, 0x1000, 0x2000));
  check("other memory over two slots, in one call", [], () => put(region, 0x3000, 0x6000, a));
  check("the same params again", [], () => region.map());
  check("a slot that goes", ["unmap 0x4000-0x8000"], () => region.removeMappings(range(0x4000, 0x8000)));
  check(
    "a slot that is cut",
    ["hold 0x0-0x4000", "unmap 0x0-0x4000", "map 0x0-0x2000 rw", "map 0x3000-0x4000 rw", "go on"],
    () => region.removeMappings(range(0x2000, 0x3000)),
  );
  check(
    "a mapping that becomes read-only within a slot",
    ["hold 0x0-0x2000", "unmap 0x0-0x2000", "map 0x0-0x1000 ro", "map 0x1000-0x2000 rw", "go on"],
    () => put(region, 0, 0x1000, a, false),
  );
  check(
    "several slots that go",
    ["hold 0x0-0x2000 0x3000-0x4000", "unmap 0x0-0x1000", "unmap 0x1000-0x2000", "unmap 0x3000-0x4000", "go on"],
    () => region.unmap(),
  );
  check("several that come", ["map 0x0-0x1000 ro", "map 0x1000-0x2000 rw", "map 0x3000-0x4000 rw"], () => region.map());
  region[Symbol.dispose]();

  const low = machine.region(0x10_0000, 0x10_4000);
  put(low, 0, 0x4000, a);
  low.map();
  const high = machine.region(0x10_0000, 0x10_4000, { priority: 1 });
  put(high, 0, 0x4000);
  check("a switch in one call", [], () => high.map());
  put(low, 0, 0x1000, b);
  // The high region shows b at the same offset there, so that page needs no call.
  check("a switch in one call, with a part that stays", [], () => high.unmap());
  put(low, 0x2000, 0x3000, machine.file(3));
  check("a switch in one call, over several mappings", [], () => high.map());
  check("a switch in several calls", ["hold 0x101000-0x104000", "go on"], () => high.unmap());
  check(
    "a move",
    ["hold 0x100000-0x104000 0x200000-0x204000", "unmap 0x100000-0x104000", "map 0x200000-0x204000 rw", "go on"],
    () =>
      machine.regions.batch(() => {
        low[Symbol.dispose]();
        high[Symbol.dispose]();
        machine.backed(0x20_0000, 0x20_4000, b);
      }),
  );

  const window = machine.region(0x30_0000, 0x30_8000, { holes: "fault" });
  check("a window", ["map 0x300000-0x308000 rw"], () => window.map());
  check("memory in a window", [], () => put(window, 0, 0x4000));
  check("other memory in it", [], () => put(window, 0x1000, 0x6000, a));
  check("a hole in it", [], () => window.removeMappings(range(0x2000, 0x3000)));
  check("read-only memory in it", [], () => put(window, 0x2000, 0x3000, a, false));
  check("a window that goes", ["unmap 0x300000-0x308000"], () => window.unmap());
});

kvmTest("a hook that throws keeps everything as it was, for the guest too", () => {
  let fail = false;
  using machine = new Machine({
    quiesce: () => {
      if (fail) throw new Error("no vCPU can be held");
      return { [Symbol.dispose]() {} };
    },
  });
  const guest = machine.attached();
  const region = machine.backed(0, 0x4000, machine.file(1));
  const [slots, vmas] = [guest.slots, mappings(machine.va.base, machine.va.base + 0x4000)];
  fail = true;
  let message = "";
  try {
    region.map({ writable: false });
  } catch (error) {
    message = String(error);
  }
  assert(message.includes("no vCPU can be held"), message);
  assertEquals([guest.slots, mappings(machine.va.base, machine.va.base + 0x4000)], [slots, vmas]);
  assertEquals([guest.store(0, 5), region.mapParams?.writable], ["stored", true]);
  fail = false;
  region.map({ writable: false });
  assertEquals([guest.store(0, 6), guest.load(0), guest.load(0x1000)], ["mmio", 5, stamp(1, 1)]);
});

kvmTest("two VMs are held together, since a guest of one could see the other", () => {
  using scene = new Scene();
  const { machine } = scene;
  const other = machine.attached({ offset: 0x100_0000 });
  const region = machine.backed(0, 0x2000, machine.file(1));
  assertEquals(scene.during(() => region.unmap()), ["hold 0x0-0x2000", "unmap 0x0-0x2000", "go on"]);
  assertEquals(scene.during(() => region.map()), ["map 0x0-0x2000 rw"]);
  assertEquals(other.pages(0x100_0000, 0x100_2000), stamps(1, 0, 2));
});
