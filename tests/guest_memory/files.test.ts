import { assert, assertEquals, assertThrows } from "@std/assert";
import { GuestMemoryError, GuestMemoryManager, Mappable, MemoryRange } from "membacking";
import { PAGE } from "../support/units.ts";

const AT = 0x10_0000;

/** A guest with RAM up to 1 MiB and a file right above that anyone may truncate. */
class Rig implements Disposable {
  readonly guest: GuestMemoryManager;
  readonly path: string;

  constructor(length: number) {
    this.path = Deno.makeTempFileSync({ dir: "/dev/shm" });
    Deno.truncateSync(this.path, length);
    this.guest = GuestMemoryManager.create({
      maxAddress: 2 * AT,
      ram: [{ ranges: [new MemoryRange(0, AT)] }],
    });
    using file = Mappable.open(this.path, { write: true });
    const pages = Math.ceil(length / PAGE) * PAGE;
    const device = this.guest.newDeviceMemory("file", pages);
    device.map({ offset: 0, mappable: file, length: pages });
    device.mapToGuest(AT, true);
  }

  get memory() {
    return this.guest.memory;
  }

  [Symbol.dispose](): void {
    this.guest[Symbol.dispose]();
    Deno.removeSync(this.path);
  }
}

Deno.test("a file is read and written where it lies, in every way", () => {
  using rig = new Rig(4 * PAGE);
  const { memory, path } = rig;
  memory.writeUint8(AT, 1);
  memory.writeUint16(AT + 2, 0x0302);
  memory.writeUint32(AT + 4, 0x0706_0504);
  memory.writeBigUint64(AT + 8, 0x0f0e_0d0c_0b0a_0908n);
  memory.fill(AT + 16, 3 * PAGE, 0x55);
  assertEquals([...Deno.readFileSync(path).subarray(0, 18)], [
    1,
    0,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    11,
    12,
    13,
    14,
    15,
    0x55,
    0x55,
  ]);
  assertEquals([memory.readUint8(AT), memory.readUint16(AT + 2)], [1, 0x0302]);
  assertEquals([memory.readUint32(AT + 4), memory.readBigUint64(AT + 8)], [0x0706_0504, 0x0f0e_0d0c_0b0a_0908n]);
  const across = new Uint8Array(2 * PAGE);
  memory.fill(AT - PAGE, PAGE, 0x77);
  memory.readInto(AT - PAGE, across);
  assertEquals([across[0], across[PAGE], across[PAGE + 15]], [0x77, 1, 15]);
  memory.write(AT - 2, new Uint8Array([9, 8, 7, 6]));
  assertEquals([memory.readUint16(AT - 2), memory.readUint16(AT)], [0x0809, 0x0607]);
});

Deno.test("a large fill of a file goes all the way", () => {
  using rig = new Rig(0x4_3000);
  rig.memory.fill(AT + 1, 0x4_2ffe, 0xab);
  const bytes = Deno.readFileSync(rig.path);
  assertEquals([bytes[0], bytes[1], bytes[0x4_2ffe], bytes[0x4_2fff]], [0, 0xab, 0xab, 0]);
  assert(bytes.subarray(1, -1).every((byte) => byte === 0xab));
});

Deno.test("behind the end of a file its last page reads as zeros, and cannot be written", () => {
  using rig = new Rig(PAGE + 0x10);
  const { memory } = rig;
  memory.fill(AT + PAGE, 0x10, 3);
  assertEquals([memory.readUint8(AT + PAGE + 0xf), memory.readUint8(AT + PAGE + 0x10)], [3, 0]);
  assertEquals(memory.readUint32(AT + PAGE + 0xe), 0x0303);
  assertEquals(memory.read(AT, 2 * PAGE).length, 2 * PAGE);
  const error = assertThrows(() => memory.writeUint32(AT + PAGE + 0xe, 1), GuestMemoryError);
  assertEquals(error.kind, "not-mapped");
  assertEquals(Deno.statSync(rig.path).size, PAGE + 0x10);
});

Deno.test("an access to what was truncated is an error, and one that is only partly there writes nothing", () => {
  using rig = new Rig(4 * PAGE);
  const { memory, path } = rig;
  memory.fill(AT - PAGE, PAGE, 1);
  Deno.truncateSync(path, PAGE);
  for (
    const access of [
      () => memory.readUint32(AT + PAGE),
      () => memory.readUint32(AT + PAGE - 2),
      () => memory.read(AT, 2 * PAGE),
      () => memory.writeUint32(AT + PAGE, 1),
      () => memory.write(AT - 4, new Uint8Array(PAGE + 8).fill(9)),
      () => memory.fill(AT - 4, PAGE + 8, 9),
    ]
  ) {
    const error = assertThrows(access, GuestMemoryError);
    assertEquals(error.kind, "not-mapped");
  }
  assertEquals([memory.readUint32(AT - 4), memory.readUint32(AT)], [0x0101_0101, 0]);
  Deno.truncateSync(path, 0);
  assertThrows(() => memory.readUint8(AT), GuestMemoryError);
  Deno.truncateSync(path, 4 * PAGE);
  memory.writeUint8(AT + PAGE, 5);
  assertEquals(memory.readUint8(AT + PAGE), 5);
});

Deno.test("locks of read-only memory end in an error while the process still has mappings for everything else", async () => {
  const script = `
    import { GuestMemoryManager, LimitError, MemoryRange } from "membacking";
    const all = new MemoryRange(0, 0x10000);
    using guest = GuestMemoryManager.create({ maxAddress: 0x10000, ram: [{ ranges: [all] }] });
    guest.setRamVisibility(all, "read-only");
    const locks = [];
    try {
      while (true) locks.push(guest.memory.lock(all));
    } catch (error) {
      if (!(error instanceof LimitError)) throw error;
      for (const lock of locks) lock[Symbol.dispose]();
      guest.memory.lock(all)[Symbol.dispose]();
      console.log(locks.length > 1000 ? "done" : locks.length);
    }
  `;
  const command = new Deno.Command(Deno.execPath(), {
    args: ["run", "--allow-ffi", "--no-check", "-"],
    cwd: new URL("../../", import.meta.url),
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  });
  await using child = command.spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(script));
  await writer.close();
  const { stdout, stderr } = await child.output();
  assertEquals(new TextDecoder().decode(stdout).trim(), "done", new TextDecoder().decode(stderr));
});
