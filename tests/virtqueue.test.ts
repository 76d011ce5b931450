import { assert, assertEquals, assertThrows } from "@std/assert";
import { GuestMemoryManager, Mappable, MemoryRange } from "membacking";
import { BlockDevice } from "../examples/virtqueue/block_device.ts";
import { Driver } from "../examples/virtqueue/driver.ts";
import { byAccessors, ByLock } from "../examples/virtqueue/ring_memory.ts";
import { RingError, SplitQueue } from "../examples/virtqueue/split_queue.ts";

const LAYOUT = { size: 8, descriptors: 0x1000, available: 0x2000, used: 0x3000 };
const [NEXT, WRITE, INDIRECT] = [1, 2, 4];

function rig(way: "accessors" | "lock") {
  const stack = new DisposableStack();
  const guest = stack.use(
    GuestMemoryManager.create({ maxAddress: 0x10_0000, ram: [{ ranges: [new MemoryRange(0, 0x8_0000)] }] }),
  );
  const disk = stack.use(Mappable.memfd("disk", 0x1000));
  const { memory } = guest;
  const ring = way === "accessors"
    ? byAccessors(memory)
    : new ByLock(stack.use(memory.lock(new MemoryRange(0x1000, 0x4000), { write: true })));
  return {
    ...{ memory, disk, driver: new Driver(memory, LAYOUT), device: new BlockDevice(memory, disk) },
    queue: new SplitQueue(ring, LAYOUT),
    [Symbol.dispose]: () => stack.dispose(),
  };
}

for (const way of ["accessors", "lock"] as const) {
  Deno.test(`the example of a virtqueue serves a disk ${way === "lock" ? "through a lock" : "by accessors"}`, () => {
    using set = rig(way);
    const { memory, disk, driver, device, queue } = set;
    disk.write(512, new Uint8Array(512).fill(7));
    assertEquals(queue.pop(), null);
    // More often than there are entries, so that the rings go round.
    for (let i = 0; i < 20; i++) {
      memory.writeUint32(0x5000, 0);
      memory.writeBigUint64(0x5008, 1n);
      driver.describe(0, 0x5000, 16, NEXT, 1);
      driver.describe(1, 0x7_fe00, 256, NEXT | WRITE, 2);
      driver.describe(2, 0x6100, 256, NEXT | WRITE, 3);
      driver.describe(3, 0x6300, 1, WRITE);
      driver.submit(0);
      const chain = queue.pop();
      assert(chain !== null);
      queue.push(chain, device.serve(chain));
      assertEquals(driver.take(), { head: 0, written: 513 });
      assertEquals([memory.readUint8(0x7_fe00), memory.readUint8(0x61ff), memory.readUint8(0x6300)], [7, 7, 0]);
    }
    // Beyond the disk, and beyond memory: errors that the driver is told.
    for (const [sector, gpa] of [[8n, 0x6000], [1n, 0x9_0000]] as const) {
      memory.writeBigUint64(0x5008, sector);
      driver.describe(1, gpa, 512, NEXT | WRITE, 3);
      driver.submit(0);
      const chain = queue.pop();
      assert(chain !== null);
      assertEquals(device.serve(chain), 1);
      assertEquals(memory.readUint8(0x6300), 1);
    }
  });

  Deno.test(`a driver that breaks the rules of the ring ends in errors, by ${way}`, () => {
    using set = rig(way);
    const { memory, driver, queue } = set;
    const broken = (act: () => void, message: string) => {
      act();
      driver.submit(0);
      assertThrows(() => queue.pop(), RingError, message);
    };
    broken(() => driver.describe(0, 0x5000, 16, NEXT, 0), "does not end");
    broken(() => driver.describe(0, 0x5000, 16, NEXT, 9), "beyond the table");
    broken(() => driver.describe(0, 0x5000, 16, INDIRECT), "not negotiated");
    broken(() => {
      driver.describe(0, 0x5000, 16, NEXT | WRITE, 1);
      driver.describe(1, 0x5000, 16, 0);
    }, "follows a writable one");
    memory.writeUint16(LAYOUT.available + 2, 0x8000);
    assertThrows(() => queue.pop(), RingError, "ahead");
  });
}

Deno.test("the example of a virtqueue runs with the permission to use FFI and no other", () => {
  const { success, stdout, stderr } = new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-prompt", "--no-check", "--quiet", "--allow-ffi", "examples/virtqueue/main.ts", "640"],
    cwd: new URL("../", import.meta.url),
  }).outputSync();
  const text = new TextDecoder();
  assert(success, text.decode(stderr));
  assert(text.decode(stdout).includes("every one of them right"), text.decode(stdout));
});
