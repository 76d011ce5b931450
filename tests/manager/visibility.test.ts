import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { GuestMemoryManager, Mappable, MemoryLockedError, RamLayoutError } from "membacking";
import { RecordingPartition } from "membacking/testing";
import { kvmTest } from "../support/require.ts";
import { Machine, NOTHING } from "./machine.ts";
import { range } from "../support/units.ts";

const MIB = 2 ** 20;
const LOW = range(0, 2 * MIB);
const PC = { maxAddress: 16 * MIB, ram: [{ ranges: [LOW] }], x86Legacy: true };

kvmTest("a guest sees RAM that is read-write, read-only and unmapped as just that", () => {
  using machine = new Machine(PC);
  const { guest } = machine;
  const pam = range(0xc_0000, 0xc_4000);
  assertEquals(machine.write(0xc_1000, 0x1111), { value: 0, exits: [] });
  assertEquals(machine.read(0xc_1000), { value: 0x1111, exits: [] });

  guest.setRamVisibility(pam, "read-only");
  assertEquals(machine.read(0xc_1000), { value: 0x1111, exits: [] });
  assertEquals(machine.write(0xc_1000, 0x2222), { value: 0, exits: ["0xc1000 w"] });
  assertEquals(machine.read(0xc_1000), { value: 0x1111, exits: [] });

  guest.setRamVisibility(pam, "unmapped");
  assertEquals(machine.read(0xc_1000), { value: NOTHING, exits: ["0xc1000 r"] });
  assertEquals(machine.write(0xc_1000, 0x3333), { value: 0, exits: ["0xc1000 w"] });

  guest.setRamVisibility(pam, "read-write");
  assertEquals(machine.read(0xc_1000), { value: 0x1111, exits: [] });
  assertEquals(machine.write(0xc_1000, 0x4444).exits, []);
  assertEquals(guest.memory.readUint32(0xc_1000), 0x4444);
});

kvmTest("a guest sees that each legacy range is switched on its own, and its neighbours stay", () => {
  using machine = new Machine(PC);
  const { guest } = machine;
  const legacy = guest.ramRanges.filter(({ start }) => start >= 0xa_0000 && start < MIB);
  assertEquals(legacy.length, 14);
  const sees = () =>
    guest.ramRanges.map(({ start, end }) => {
      const at = start === 0 ? 0x8000 : end - 4;
      return machine.read(at).exits.length === 0;
    });
  for (const [i, range] of legacy.entries()) {
    guest.setRamVisibility(range, "unmapped");
    assertEquals(sees(), guest.ramRanges.map((_, j) => j !== i + 1));
    guest.setRamVisibility(range, "read-write");
  }
  assert(sees().every((seen) => seen));
});

kvmTest("device memory below RAM shows when the RAM is switched off, and RAM has its bytes when it is back", () => {
  using machine = new Machine(PC);
  const { guest } = machine;
  const window = range(0xa_0000, 0xc_0000);
  using pixels = Mappable.memfd("vga", window.length);
  const vga = guest.newDeviceMemory("vga", window.length);
  vga.map({ offset: 0, mappable: pixels, length: window.length });
  vga.mapToGuest(window.start, true);
  machine.write(0xa_0000, 0x0bad);
  assertEquals(vga.visible, []);

  guest.setRamVisibility(window, "unmapped");
  assertEquals(machine.read(0xa_0000), { value: 0, exits: [] });
  machine.write(0xb_fffc, 0x600d);
  const bytes = new Uint8Array(2);
  pixels.read(window.length - 4, bytes);
  assertEquals([...bytes], [0x0d, 0x60]);

  guest.setRamVisibility(window, "read-write");
  assertEquals(machine.read(0xa_0000).value, 0x0bad);
  assertEquals(machine.read(0xb_fffc).value, 0);
});

kvmTest("a guest finds all its memory at the alias too, and what it may do there is the same", () => {
  const GIB = 2 ** 30;
  using machine = new Machine(PC, 0x1000, { aliasOffset: GIB });
  machine.write(GIB + 0x10_0000, 0x1234);
  assertEquals(machine.read(0x10_0000), { value: 0x1234, exits: [] });
  assertEquals(machine.vm.slots.length, 2 * machine.guest.ramRanges.length);
  machine.guest.setRamVisibility(range(0xe_0000, 0xe_4000), "read-only");
  assertEquals(machine.write(GIB + 0xe_0000, 1).exits, ["0x400e0000 w"]);
  assertEquals(machine.write(0xe_0000, 1).exits, ["0xe0000 w"]);
});

kvmTest("switching a legacy range never touches the slots of other RAM", () => {
  using machine = new Machine(PC);
  const others = () => machine.vm.slots.filter(({ range }) => !range.containsAddress(0xf_0000)).map(({ slot }) => slot);
  const before = others();
  for (const to of ["read-only", "unmapped", "read-write"] as const) {
    machine.guest.setRamVisibility(range(0xf_0000, MIB), to);
    assertEquals(others(), before);
  }
});

Deno.test("switching RAM to what it is does nothing", () => {
  using guest = GuestMemoryManager.create({ ...PC, ram: [{ ranges: [LOW], prefetch: true }] });
  const vm = new RecordingPartition();
  using _attached = guest.attachPartition(vm);
  vm.calls.length = 0;
  guest.setRamVisibility(range(0xc_0000, 0xc_4000), "read-write");
  assertEquals(vm.calls.length, 0);
});

Deno.test("several ranges are switched as one request in a batch, or not at all", () => {
  using guest = GuestMemoryManager.create(PC);
  const pam = guest.ramRanges.filter(({ start }) => start >= 0xc_0000 && start < MIB);
  guest.regions.batch(() => pam.forEach((range) => guest.setRamVisibility(range, "read-only")));
  assertThrows(() => guest.memory.writeUint8(0xc_0000, 1));
  assertThrows(() =>
    guest.regions.batch(() => {
      pam.forEach((range) => guest.setRamVisibility(range, "read-write"));
      guest.setRamVisibility(range(0xc_0000, 0xc_1000), "read-write");
    }), RamLayoutError);
  assertThrows(() => guest.memory.writeUint8(0xc_0000, 1));
});

Deno.test("only whole RAM ranges can be switched, and the error names the nearest", () => {
  using guest = GuestMemoryManager.create(PC);
  for (
    const [part, near] of [
      [range(0xc_0000, 0xc_2000), "0xc0000-0xc4000"],
      [range(0xc_0000, 0xc_8000), "0xc4000-0xc8000"],
      [range(0, MIB), "0x0-0xa0000"],
      [range(8 * MIB, 9 * MIB), "0x100000-0x200000"],
      [range(0, 0), "0x0-0xa0000"],
    ] as const
  ) {
    const error = assertThrows(() => guest.setRamVisibility(part, "unmapped"), RamLayoutError);
    assertEquals([error.kind, `${error.range}`], ["not-a-ram-range", `${part}`]);
    assertStringIncludes(error.message, near);
  }
  assertThrows(() => guest.setRamVisibility(range(0xc_0000, 0xc_4000), "hidden" as never), TypeError, "hidden");
  assertThrows(() => guest.setRamVisibility([0xc_0000, 0xc_4000] as never, "unmapped"), TypeError);
  using empty = GuestMemoryManager.create({ maxAddress: MIB, ram: [] });
  assertThrows(() => empty.setRamVisibility(range(0, MIB), "unmapped"), RamLayoutError, "no RAM");
});

Deno.test("private RAM can be made read-only, unmapped and writable again, and keeps its bytes", () => {
  using guest = GuestMemoryManager.create({ maxAddress: 4 * MIB, ram: [{ ranges: [LOW], backing: "private" }] });
  guest.memory.writeUint32(0x1000, 42);
  guest.setRamVisibility(LOW, "read-only");
  assertThrows(() => guest.memory.writeUint32(0x1000, 1));
  guest.setRamVisibility(LOW, "unmapped");
  assertThrows(() => guest.memory.readUint32(0x1000));
  guest.setRamVisibility(LOW, "read-write");
  assertEquals(guest.memory.readUint32(0x1000), 42);
});

Deno.test("locked RAM cannot be switched, and unlocked it can", () => {
  using guest = GuestMemoryManager.create(PC);
  const pam = range(0xc_0000, 0xc_4000);
  const locked = guest.memory.lock(range(0xc_1000, 0xc_2000));
  for (const to of ["read-only", "unmapped"] as const) {
    assertThrows(() => guest.setRamVisibility(pam, to), MemoryLockedError);
  }
  guest.setRamVisibility(range(0xc_4000, 0xc_8000), "unmapped");
  locked[Symbol.dispose]();
  guest.setRamVisibility(pam, "unmapped");
});
