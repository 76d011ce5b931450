import { assert, assertEquals, assertInstanceOf } from "@std/assert";
import fc from "fast-check";
import { MemoryRange } from "membacking";
import { BarPlacementError } from "../../examples/firmware/bar.ts";
import { CARD_MEMORY_LENGTH, COMMAND, IDENTITY, REGISTER, REGISTERS_LENGTH } from "../../examples/firmware/card.ts";
import { RAM, Rig } from "./rig.ts";

const BAR0 = 0x10;
const BAR1 = 0x14;
const REGISTERS_AT = 0xfeb0_0000;
const MEMORY_AT = 0xfea0_0000;
const ONES = 0xffff_ffff;

function placed(): Rig {
  const rig = new Rig();
  rig.placeCard(REGISTERS_AT, MEMORY_AT);
  return rig;
}

function assertWhereItWas(rig: Rig): void {
  assertEquals(rig.readConfig(1, BAR0), REGISTERS_AT);
  assertEquals(rig.readConfig(1, BAR1), MEMORY_AT);
  assertEquals(rig.load(REGISTERS_AT), IDENTITY);
  assertEquals(rig.accessAt(MEMORY_AT), "rw");
  assertEquals(rig.accessAt(REGISTERS_AT), "exit");
}

Deno.test("a BAR tells its length and is nowhere until memory is switched on", () => {
  using rig = new Rig();
  rig.writeConfig(1, BAR0, ONES);
  rig.writeConfig(1, BAR1, ONES);
  assertEquals(rig.readConfig(1, BAR0), 0x1_0000_0000 - REGISTERS_LENGTH);
  assertEquals(rig.readConfig(1, BAR1), 0x1_0000_0000 - CARD_MEMORY_LENGTH);
  rig.writeConfig(1, BAR1, MEMORY_AT);
  assertEquals(rig.accessAt(MEMORY_AT), "exit");
  rig.writeConfig(1, COMMAND, 2);
  assertEquals(rig.accessAt(MEMORY_AT), "rw");
  assertEquals(rig.requests.map(({ cause }) => cause), ["COMMAND <- memory on"]);
});

Deno.test("the card's registers trap, its memory is a slot", () => {
  using rig = placed();
  assertWhereItWas(rig);
  rig.store(REGISTERS_AT + REGISTER.inverter, 0x1234_5678);
  assertEquals(rig.load(REGISTERS_AT + REGISTER.inverter), ~0x1234_5678 >>> 0);
  assertEquals(rig.load(REGISTERS_AT + REGISTERS_LENGTH), ONES);
});

Deno.test("asking a BAR in use for its length leaves it in place", () => {
  using rig = placed();
  rig.writeConfig(1, BAR1, ONES);
  assertEquals(rig.accessAt(MEMORY_AT), "rw");
  rig.writeConfig(1, BAR1, MEMORY_AT);
  assertWhereItWas(rig);
  assertEquals(rig.requests.length, 2);
});

Deno.test("a BAR that moves takes its memory along", () => {
  using rig = placed();
  const { memory } = rig.memory.guest;
  memory.writeUint32(MEMORY_AT, 0x1234_5678);
  rig.writeConfig(1, BAR1, 0xe000_0000);
  assertEquals(rig.accessAt(MEMORY_AT), "exit");
  assertEquals(memory.readUint32(0xe000_0000), 0x1234_5678);
});

for (
  const [where, register, address] of [
    ["the start of RAM", BAR1, 0x10_0000],
    ["half of RAM", BAR1, RAM - 0x10_0000],
    ["the VGA window", BAR0, 0xa_0000],
    ["the ROM below 1 MiB", BAR0, 0xf_0000],
    ["the I/O APIC", BAR0, 0xfec0_0000],
    ["the local APIC", BAR0, 0xfee0_0000],
    ["the ROM", BAR0, 0xfffc_0000],
  ] as const
) {
  Deno.test(`a BAR that is to be over ${where} stays where it was`, () => {
    using rig = placed();
    const calls = rig.partition.calls.length;
    rig.writeConfig(1, register, address);
    assertWhereItWas(rig);
    assertEquals(rig.partition.calls.length, calls);
    assertEquals(rig.refused.length, 1);
    assertInstanceOf(rig.refused[0], BarPlacementError);
    assertEquals(rig.refused[0].window, rig.memory.bus);
  });
}

Deno.test("a BAR that is set to 0 is nowhere", () => {
  using rig = placed();
  rig.writeConfig(1, BAR1, 0);
  assertEquals(rig.accessAt(MEMORY_AT), "exit");
  assertEquals(rig.refused, []);
});

Deno.test("a BAR that is put over another gives way to the older one where both are, and is all there again elsewhere", () => {
  using rig = placed();
  rig.writeConfig(1, BAR1, REGISTERS_AT);
  assertEquals(rig.load(REGISTERS_AT), IDENTITY);
  assertEquals(rig.accessAt(REGISTERS_AT), "exit");
  assertEquals(rig.accessAt(REGISTERS_AT + REGISTERS_LENGTH), "rw");
  rig.writeConfig(1, BAR1, MEMORY_AT);
  assertWhereItWas(rig);
  rig.writeConfig(1, BAR0, MEMORY_AT + 0x8000);
  assertEquals(rig.load(MEMORY_AT + 0x8000), IDENTITY);
  assertEquals([rig.accessAt(MEMORY_AT), rig.accessAt(MEMORY_AT + 0x8000)], ["rw", "exit"]);
  rig.writeConfig(1, BAR0, REGISTERS_AT);
  assertWhereItWas(rig);
  assertEquals(rig.refused, []);
});

Deno.test("a BAR that is switched on at an impossible place is back where it last was", () => {
  using rig = placed();
  rig.writeConfig(1, COMMAND, 0);
  assertEquals(rig.accessAt(MEMORY_AT), "exit");
  assertEquals(rig.load(REGISTERS_AT), ONES);
  rig.writeConfig(1, BAR1, 0x10_0000);
  assertEquals(rig.refused, []);
  rig.writeConfig(1, COMMAND, 2);
  assertEquals(rig.refused.length, 1);
  assertWhereItWas(rig);
});

Deno.test("a BAR that has never been anywhere stays nowhere at an impossible place", () => {
  using rig = new Rig();
  rig.placeCard(REGISTERS_AT, 0x10_0000);
  assertEquals(rig.readConfig(1, BAR1), 0);
  assertEquals(rig.readConfig(1, BAR0), REGISTERS_AT);
  assertEquals(rig.load(REGISTERS_AT), IDENTITY);
  assertEquals(rig.refused.length, 1);
});

Deno.test("wherever a guest puts the BARs, they are on the bus, where their registers say, the older one on top", () => {
  const write = fc.tuple(
    fc.constantFrom(BAR0, BAR1, COMMAND),
    fc.oneof(
      fc.nat(0xffff_ffff),
      fc.constantFrom(0, 2, ONES, RAM - 0x1000, RAM, 0xfebf_f000, 0xfec0_0000, 0xfff0_0000),
      fc.nat(32).map((i) => 0xfe80_0000 + i * 0x1_0000), // near each other
    ),
  );
  fc.assert(
    fc.property(fc.array(write, { maxLength: 30 }), (writes) => {
      using rig = placed();
      for (const [offset, value] of writes) {
        rig.writeConfig(1, offset, value);
        const on = (rig.readConfig(1, COMMAND) & 2) !== 0;
        const inside = rig.partition.ranges.map(({ range }) => range).filter(({ start }) =>
          rig.memory.bus.containsAddress(start)
        );
        if (!on) {
          assertEquals(inside, []);
          continue;
        }
        const memoryAt = rig.readConfig(1, BAR1);
        const registersAt = rig.readConfig(1, BAR0);
        const isSized = (register: number, length: number) => register === 0x1_0000_0000 - length;
        if (isSized(memoryAt, CARD_MEMORY_LENGTH) || isSized(registersAt, REGISTERS_LENGTH)) continue;
        const registers = registersAt === 0 ? [] : [MemoryRange.of(registersAt, REGISTERS_LENGTH)];
        const memory = memoryAt === 0 ? [] : [MemoryRange.of(memoryAt, CARD_MEMORY_LENGTH)];
        assertEquals(joined(inside), memory.flatMap((whole) => without(whole, registers)));
        for (const range of registers) {
          assert(rig.memory.bus.contains(range));
          assertEquals(rig.load(range.start), IDENTITY);
        }
      }
    }),
    { numRuns: 100 },
  );
});

/** What of `whole` none of `others` covers, of which there is one at most. */
function without(whole: MemoryRange, [other]: readonly MemoryRange[]): MemoryRange[] {
  if (other === undefined || !other.overlaps(whole)) return [whole];
  const before = new MemoryRange(whole.start, Math.max(whole.start, other.start));
  const after = new MemoryRange(Math.min(whole.end, other.end), whole.end);
  return [before, after].filter(({ isEmpty }) => !isEmpty);
}

/** Ranges in order, those that touch as one: a slot that came when another BAR left stays one of its own. */
function joined(ranges: readonly MemoryRange[]): MemoryRange[] {
  return ranges.reduce<MemoryRange[]>((all, range) => {
    const last = all.at(-1);
    if (last?.end !== range.start) return [...all, range];
    return [...all.slice(0, -1), new MemoryRange(last.start, range.end)];
  }, []);
}
