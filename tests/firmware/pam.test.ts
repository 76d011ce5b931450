import { assertEquals, assertInstanceOf } from "@std/assert";
import fc from "fast-check";
import { MappingError, MemoryRange } from "membacking";
import { PAM_RANGES, pamChanges } from "../../examples/firmware/pam.ts";
import { RAM, Rig, ROM, romWord } from "./rig.ts";

const OFF = new Uint8Array(7);

Deno.test("pamChanges reads two bits per range, PAM0 in its high nibble", () => {
  const named = (registers: number[]) =>
    pamChanges(OFF, Uint8Array.from(registers)).map(({ range, to }) => `${range} ${to}`);
  assertEquals(named([0x30, 0, 0, 0, 0, 0, 0]), ["0xf0000-0x100000 read-write"]);
  assertEquals(named([0x0f, 0, 0, 0, 0, 0, 0]), []);
  assertEquals(named([0, 0x31, 0, 0, 0, 0, 0]), ["0xc0000-0xc4000 read-only", "0xc4000-0xc8000 read-write"]);
  assertEquals(named([0, 0, 0, 0, 0, 0, 0x10]), ["0xec000-0xf0000 read-only"]);
});

Deno.test("pamChanges takes RAM for writes alone as no RAM", () => {
  assertEquals(pamChanges(OFF, Uint8Array.of(0x20, 0x22, 0, 0, 0, 0, 0)), []);
});

Deno.test("pamChanges tells what differs and nothing else", () => {
  const before = Uint8Array.of(0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33);
  const after = Uint8Array.of(0x30, 0x33, 0x33, 0x33, 0x33, 0x31, 0x33);
  assertEquals(pamChanges(before, after), [{ range: new MemoryRange(0xe_0000, 0xe_4000), to: "read-only" }]);
  assertEquals(pamChanges(after, after), []);
});

Deno.test("at power-on there is RAM, the ROM in two places, and no shadow RAM", () => {
  using rig = new Rig();
  const seen = rig.partition.ranges.map(({ range, access }) => `${range} ${access.writable ? "rw" : "ro"}`);
  assertEquals(seen, [
    "0x0-0xa0000 rw",
    "0xe0000-0x100000 ro",
    "0x100000-0x2000000 rw",
    "0xfffc0000-0x100000000 ro",
  ]);
  const { memory } = rig.memory.guest;
  assertEquals(memory.readUint32(0xffff_fff0), romWord(ROM - 0x10));
  assertEquals(memory.readUint32(0xf_fff0), romWord(ROM - 0x10));
});

Deno.test("one write to PAM is one request, and joins what it makes the same", () => {
  using rig = new Rig();
  const calls = rig.partition.calls.length;
  rig.writeConfig(0, 0x58, 0x3333_3000);
  assertEquals(rig.requests.length, 1);
  assertEquals(rig.partition.calls.slice(calls).map(({ method, range }) => `${method} ${range}`), [
    "unmapRange 0xe0000-0x100000",
    "mapRange 0xc0000-0xd0000",
    "mapRange 0xe0000-0xf0000",
    "mapRange 0xf0000-0x100000",
  ]);
  assertEquals(rig.requests[0]?.cause, "PAM: 0x58 <- 0x33333000");
});

Deno.test("a PAM write that changes no bits of a range is no request", () => {
  using rig = new Rig();
  rig.writeConfig(0, 0x5c, 0xcccc_cccc);
  assertEquals(rig.readConfig(0, 0x5c), 0);
  assertEquals(rig.requests.length, 0);
});

Deno.test("a PAM write that the virtual machine cannot follow changes nothing, and can be made again", () => {
  for (let passes = 0; passes < 4; passes++) {
    using rig = new Rig();
    const { ranges, faults } = rig.partition;
    faults.failAfter(passes);
    rig.writeConfig(0, 0x58, 0x3333_3000);
    assertInstanceOf(rig.refused[0], MappingError);
    assertEquals(rig.readConfig(0, 0x58), 0);
    assertEquals(rig.partition.ranges, ranges);
    rig.writeConfig(0, 0x58, 0x3333_3000);
    assertEquals(rig.readConfig(0, 0x58), 0x3333_3000);
    assertEquals(rig.accessAt(0xf_0000), "rw");
  }
});

Deno.test("whatever a guest writes to PAM, each range is what its bits say, keeps its bytes, and RAM is left alone", () => {
  const writes = fc.array(fc.tuple(fc.constantFrom(0x58, 0x5c), fc.nat(0xffff_ffff)), { maxLength: 12 });
  fc.assert(
    fc.property(writes, (writes) => {
      using rig = new Rig();
      const { memory } = rig.memory.guest;
      const written = new Map<number, number>();
      for (const [time, [offset, value]] of writes.entries()) {
        rig.writeConfig(0, offset, value);
        for (const { start, end } of PAM_RANGES) {
          const bits = pamBits(rig, start);
          const isRom = start >= 0xe_0000;
          const want = bits === 3 ? "rw" : bits === 1 || isRom ? "ro" : "exit";
          assertEquals(rig.accessAt(start), want);
          assertEquals(rig.accessAt(end - 1), want);
          if (bits === 3) {
            assertEquals(memory.readUint32(start), written.get(start) ?? 0);
            memory.writeUint32(start, time + 1);
            written.set(start, time + 1);
          } else if (bits === 1) {
            assertEquals(memory.readUint32(start), written.get(start) ?? 0);
          } else if (isRom) {
            assertEquals(memory.readUint32(start), romWord(ROM - 0x10_0000 + start));
          }
        }
      }
      const ram = [new MemoryRange(0, 0xa_0000), new MemoryRange(0x10_0000, RAM)];
      const lost = rig.partition.calls.filter(({ method, range }) =>
        method === "unmapRange" && ram.some((part) => part.overlaps(range))
      );
      assertEquals(lost, []);
    }),
    { numRuns: 25 },
  );
});

/** The two bits for the range that begins at `gpa`, as the guest reads them. */
function pamBits(rig: Rig, gpa: number): number {
  if (gpa === 0xf_0000) return rig.readConfig(0, 0x58) >>> 12 & 3;
  const nibble = (gpa - 0xc_0000) / 0x4000;
  return nibble < 4
    ? rig.readConfig(0, 0x58) >>> 16 + 4 * nibble & 3
    : rig.readConfig(0, 0x5c) >>> 4 * (nibble - 4) & 3;
}
