import { assertEquals, assertThrows } from "@std/assert";
import { Assembler, EAX } from "../../examples/firmware/assembler.ts";
import { bootFloppy } from "../../examples/firmware/boot_sector.ts";
import { FLOPPY_LENGTH, floppyFile } from "../../examples/firmware/floppy.ts";
import { SetupError } from "../../examples/pc/setup_error.ts";
import { RAM, Rig } from "./rig.ts";

const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);

Deno.test("ports that no device has read as ones", () => {
  using rig = new Rig();
  assertEquals(rig.in(0x3f8, 1), Uint8Array.of(0xff));
  assertEquals(rig.in(0x1234, 4, 2), new Uint8Array(8).fill(0xff));
  rig.out(0x80, 1, 1);
});

Deno.test("the debug port says that it is there, and gathers lines", () => {
  using rig = new Rig();
  assertEquals(rig.in(0x402, 1), Uint8Array.of(0xe9));
  for (const char of "one\r\ntwo\nthr") rig.out(0x402, 1, char.charCodeAt(0));
  assertEquals(rig.log, ["one", "two"]);
});

Deno.test("CMOS tells the size of RAM, and keeps what is written", () => {
  using rig = new Rig();
  const read = (index: number) => {
    rig.out(0x70, 1, index | 0x80);
    return rig.in(0x71, 1)[0] ?? 0;
  };
  assertEquals((read(0x34) | read(0x35) << 8) * 0x1_0000 + 0x100_0000, RAM);
  rig.out(0x70, 1, 0x0f);
  rig.out(0x71, 1, 0x05);
  assertEquals(read(0x0f), 5);
});

Deno.test("port 0x92 reads back", () => {
  using rig = new Rig();
  rig.out(0x92, 1, 2);
  assertEquals(rig.in(0x92, 1), Uint8Array.of(2));
});

Deno.test("fw_cfg has its signature, and zeros after the end of an item", () => {
  using rig = new Rig();
  rig.out(0x510, 2, 0);
  assertEquals(text(rig.in(0x511, 1, 4)), "QEMU");
  assertEquals(rig.in(0x511, 1, 2), Uint8Array.of(0, 0));
  rig.out(0x510, 2, 0x7777);
  assertEquals(rig.in(0x511, 1), Uint8Array.of(0));
});

Deno.test("fw_cfg lists its files and reads them by key", () => {
  using rig = new Rig([{ name: "opt/hello", content: new TextEncoder().encode("hello") }]);
  rig.out(0x510, 2, 0x19);
  const directory = rig.in(0x511, 1, 4 + 2 * 64);
  const view = new DataView(directory.buffer);
  assertEquals(view.getUint32(0), 2);
  assertEquals(text(directory.subarray(12, 12 + 10)), "etc/e820\0\0");
  assertEquals([view.getUint32(68), view.getUint16(72)], [5, 0x21]);
  rig.out(0x510, 2, 0x21);
  assertEquals(text(rig.in(0x511, 1, 5)), "hello");
});

Deno.test("fw_cfg tells the firmware where RAM is", () => {
  using rig = new Rig();
  rig.out(0x510, 2, 0x20);
  const view = new DataView(rig.in(0x511, 1, 20).buffer);
  assertEquals([view.getBigUint64(0, true), view.getBigUint64(8, true), view.getUint32(16, true)], [
    0n,
    BigInt(RAM),
    1,
  ]);
});

Deno.test("PCI functions that are not there read as ones", () => {
  using rig = new Rig();
  assertEquals(rig.readConfig(2, 0), 0xffff_ffff);
  rig.out(0xcf8, 4, 0); // not enabled
  assertEquals(rig.in32(0xcfc), 0xffff_ffff);
});

Deno.test("PCI configuration can be read byte by byte, and what is fixed cannot be written", () => {
  using rig = new Rig();
  rig.writeConfig(0, 0, 0);
  assertEquals(rig.readConfig(0, 0), 0x1237_8086);
  assertEquals(rig.in(0xcfe, 2), Uint8Array.of(0x37, 0x12));
  rig.readConfig(0, 0x2c);
  assertEquals(rig.in(0xcff, 1), Uint8Array.of(0x11));
});

Deno.test("a floppy of another size than 160 KiB is refused, with what to do", () => {
  const error = assertThrows(() => floppyFile(new Uint8Array(1440 * 1024)), SetupError);
  assertEquals(
    error.message,
    'A floppy image has 163840 bytes (160 KiB), and this one has 1474560; resize it with "truncate --size 160K FILE"',
  );
});

Deno.test("our floppy has a boot sector", () => {
  const image = bootFloppy();
  assertEquals(image.length, FLOPPY_LENGTH);
  assertEquals([...image.subarray(510, 512)], [0x55, 0xaa]);
});

Deno.test("the assembler finds labels before and after", () => {
  const code = new Assembler(0x7c00).label("start").jump("end").jump("start").label("end").bytes(0xf4);
  assertEquals([...code.assemble()], [0xe9, 3, 0, 0xe9, 0xfa, 0xff, 0xf4]);
});

Deno.test("the assembler refuses labels that are missing or there twice, and code that is too long", () => {
  assertThrows(() => new Assembler(0).jump("nowhere").assemble(), TypeError, 'There is no label "nowhere"');
  assertThrows(() => new Assembler(0).label("a").label("a"), TypeError, 'There are two labels "a"');
  assertThrows(() => new Assembler(0).set(EAX, 1).padTo(4), RangeError, "The code is 2 bytes longer than 4");
});
