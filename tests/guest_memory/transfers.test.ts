import { assert, assertEquals, assertInstanceOf, assertThrows } from "@std/assert";
import {
  FileTransferError,
  GuestMemoryError,
  GuestMemoryManager,
  Mappable,
  MembackingError,
  OsError,
} from "membacking";
import { HUGE_PAGE, hugePageTest } from "../support/require.ts";
import { PAGE, range } from "../support/units.ts";

const MIB = 2 ** 20;

function create(): GuestMemoryManager {
  return GuestMemoryManager.create({
    maxAddress: 8 * MIB,
    ram: [{ ranges: [range(0, MIB)] }, { ranges: [range(MIB, 2 * MIB)], backing: "private" }, {
      ranges: [range(3 * MIB, 4 * MIB)],
    }],
  });
}

/** A file on a disk, 3 pages and some bytes long, whose middle is a hole. */
function diskFile(): { path: string } & Disposable {
  const path = Deno.makeTempFileSync();
  using file = Deno.openSync(path, { write: true });
  file.writeSync(new Uint8Array(100).fill(1));
  file.seekSync(3 * PAGE, Deno.SeekMode.Start);
  file.writeSync(new Uint8Array(100).fill(3));
  return { path, [Symbol.dispose]: () => Deno.removeSync(path) };
}

Deno.test("readFrom and writeTo move bytes between a file and guest memory, at any offset and over pieces", () => {
  using guest = create();
  using disk = diskFile();
  using file = Mappable.open(disk.path, { write: true });
  const { memory } = guest;
  memory.fill(MIB - 0x2000, 0x4000, 0x77);
  memory.readFrom(file, 50, MIB - 0x1007, 3 * PAGE);
  const expected = Deno.readFileSync(disk.path).subarray(50, 50 + 3 * PAGE);
  assertEquals(memory.read(MIB - 0x1007, 3 * PAGE), expected);
  assertEquals([memory.readUint8(MIB - 0x1008), memory.readUint8(MIB - 0x1007 + 3 * PAGE)], [0x77, 0x77]);

  memory.fill(MIB - 5, 10, 0xee);
  memory.writeTo(file, 2 * PAGE + 1, MIB - 5, 10);
  assertEquals([...Deno.readFileSync(disk.path).subarray(2 * PAGE, 2 * PAGE + 12)], [0, ...Array(10).fill(0xee), 0]);
  memory.readFrom(file, 3 * PAGE + 100, 0, 0);
  memory.writeTo(file, 0, 8 * MIB, 0);
});

Deno.test("a transfer that cannot be whole is refused before a byte moves", () => {
  using guest = create();
  using disk = diskFile();
  using file = Mappable.open(disk.path);
  const { memory } = guest;
  memory.fill(0, PAGE, 9);
  assertThrows(() => memory.readFrom(file, 3 * PAGE, 0, 101), RangeError, "past the end");
  assertThrows(() => memory.readFrom(file, -1, 0, 1), RangeError);
  assertThrows(() => memory.readFrom(file, 0, 0, NaN), RangeError);
  const hole = assertThrows(() => memory.readFrom(file, 0, 2 * MIB - 8, 16), GuestMemoryError);
  assertEquals([hole.kind, hole.at], ["not-mapped", 2 * MIB]);
  assertThrows(
    () => memory.writeTo(file, 0, 0, 8),
    MembackingError,
    "is not open for writing, open it with write: true",
  );
  assertThrows(() => memory.readFrom({ fd: 0 } as never, 0, 0, 8), TypeError, "Mappable.fromFd makes one");
  guest.setRamVisibility(range(0, MIB), "read-only");
  assertEquals(assertThrows(() => memory.readFrom(file, 0, 0, 8), GuestMemoryError).kind, "read-only");
  assertEquals(memory.readUint8(0), 9);
});

Deno.test("a file that ends while it is read is an error that says how much has moved", () => {
  using guest = create();
  using disk = diskFile();
  using file = Mappable.open(disk.path, { fixedSize: true });
  Deno.truncateSync(disk.path, PAGE + 10);
  const error = assertThrows(() => guest.memory.readFrom(file, PAGE, MIB - 4, 100), FileTransferError);
  assertEquals([error.done, error.length, error.gpa, error.fileOffset], [10, 100, MIB - 4, PAGE]);
  assertInstanceOf(error.cause, MembackingError);
  assert(error.message.startsWith("0xa of 0x64 bytes moved between guest memory at 0xffffc and file offset 0x1000"));
});

Deno.test("memory that goes away under a transfer is an error and no signal", () => {
  using guest = create();
  using disk = diskFile();
  using file = Mappable.open(disk.path, { write: true });
  using bar = guest.newDeviceMemory("file", 4 * PAGE);
  using shown = Mappable.open(disk.path, { write: true });
  bar.map({ offset: 0, mappable: shown, length: 4 * PAGE });
  bar.mapToGuest(6 * MIB, true);
  Deno.truncateSync(disk.path, PAGE);
  using source = Mappable.memfd("source", 2 * PAGE);
  const error = assertThrows(() => guest.memory.readFrom(source, 0, 6 * MIB, 2 * PAGE), FileTransferError);
  assertInstanceOf(error.cause, OsError);
  assertEquals([error.cause.code, error.done], ["EFAULT", PAGE]);
  assertThrows(() => guest.memory.writeTo(file, 0, 6 * MIB + PAGE, PAGE), FileTransferError);
});

hugePageTest("a hugetlb file can be read from and written to", 1, () => {
  using guest = create();
  using huge = Mappable.memfd("huge", HUGE_PAGE, { hugepageSize: HUGE_PAGE });
  const { memory } = guest;
  memory.fill(0x1003, 0x3000, 5);
  memory.writeTo(huge, 0x10_0001, 0x1003, 0x3000);
  memory.readFrom(huge, 0x10_0000, MIB + 1, 0x3002);
  assertEquals(memory.read(MIB + 1, 0x3002), Uint8Array.of(0, ...new Uint8Array(0x3000).fill(5), 0));
});

Deno.test("a file that a frozen guest needs as it is cannot be written to", () => {
  using other = create();
  using source = GuestMemoryManager.create({ maxAddress: MIB, ram: [{ ranges: [range(0, MIB)] }] });
  using template = source.freeze();
  using clone = template.clone();
  const file = clone.memory.find(0)?.mappable;
  assert(file !== null && file !== undefined);
  const why = "cannot be written while a frozen guest, a template or a clone needs it as it is";
  assertThrows(() => other.memory.writeTo(file, 0, 0, 8), MembackingError, why);
  assertThrows(() => file.write(0, new Uint8Array(8)), MembackingError, why);
  other.memory.readFrom(file, 0, 0, 8);
});
