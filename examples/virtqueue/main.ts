/**
 * A virtqueue served from guest memory: `deno run --allow-ffi examples/virtqueue/main.ts [REQUESTS]`
 *
 * The split ring of virtio, with a disk behind it, served in both ways there are:
 *
 * - **by accessors**: `memory.loadUint16(gpa)` and so on. Nothing has to be set up or torn down, the ring may be where the
 *   driver likes, and requests to the memory map are never refused for it. Begin with this.
 * - **through one long lock** of the ring's pages: nothing but bounds is checked. It pays where a ring is polled without
 *   end, and costs that the memory cannot be unmapped or replaced meanwhile: release it when the driver resets the queue.
 *
 * Taking a chain of three descriptors and giving it back costs about 0.4 us by accessors and 0.3 us through a lock; the
 * system call that moves a sector costs 1 to 2 us, so a disk hardly shows the difference.
 *
 * The buffers of a request are moved by `readFrom` and `writeTo` here. Where the bytes are needed in JavaScript, use
 * `read` and `write` for small ones, and `lockAll` for chains that input and output goes on with after this turn.
 *
 * @module
 */

import { GuestMemoryManager, Mappable, MemoryRange } from "membacking";
import { BlockDevice } from "./block_device.ts";
import { Driver } from "./driver.ts";
import { byAccessors, ByLock, type RingMemory } from "./ring_memory.ts";
import { type QueueLayout, SplitQueue } from "./split_queue.ts";

const REQUESTS = Number(Deno.args[0] ?? 100_000);
const SECTORS = 64;
const SIZE = 256;
const RING = MemoryRange.of(0x10_0000, 0x4000);
const HEADERS = 0x20_0000;
const DATA = 0x30_0000;
const STATUS = 0x40_0000;
const NEXT = 1;
const WRITE = 2;

const LAYOUT: QueueLayout = {
  size: SIZE,
  descriptors: RING.start,
  available: RING.start + 0x1000,
  used: RING.start + 0x2000,
};

/** Reads sectors of the disk through the ring, and checks them. Returns the nanoseconds of a request. */
function run(guest: GuestMemoryManager, disk: Mappable, ring: RingMemory): number {
  const { memory } = guest;
  memory.fill(RING.start, RING.length, 0);
  const driver = new Driver(memory, LAYOUT);
  const queue = new SplitQueue(ring, LAYOUT);
  const device = new BlockDevice(memory, disk);
  const depth = 64;
  for (let i = 0; i < depth; i++) {
    driver.describe(3 * i, HEADERS + 16 * i, 16, NEXT, 3 * i + 1);
    driver.describe(3 * i + 1, DATA + 512 * i, 512, NEXT | WRITE, 3 * i + 2);
    driver.describe(3 * i + 2, STATUS + i, 1, WRITE);
  }
  const before = performance.now();
  for (let done = 0; done < REQUESTS;) {
    for (let i = 0; i < depth; i++) {
      memory.writeUint32(HEADERS + 16 * i, 0);
      memory.writeBigUint64(HEADERS + 16 * i + 8, BigInt((done + i) % SECTORS));
      driver.submit(3 * i);
    }
    for (let chain = queue.pop(); chain !== null; chain = queue.pop()) queue.push(chain, device.serve(chain));
    for (let back = driver.take(); back !== null; back = driver.take()) {
      const i = back.head / 3;
      const sector = (done + i) % SECTORS;
      if (back.written !== 513 || memory.readUint8(STATUS + i) !== 0 || memory.readUint8(DATA + 512 * i) !== sector) {
        throw new Error(`Sector ${sector} came back wrong`);
      }
    }
    done += depth;
  }
  return (performance.now() - before) * 1e6 / REQUESTS;
}

using guest = GuestMemoryManager.create({
  maxAddress: 0x100_0000,
  ram: [{ ranges: [new MemoryRange(0, 0x100_0000)] }],
});
using disk = Mappable.memfd("disk", SECTORS * 512);
for (let i = 0; i < SECTORS; i++) disk.write(i * 512, new Uint8Array(512).fill(i));

const byAccess = () => run(guest, disk, byAccessors(guest.memory));
const byLock = () => {
  using lock = guest.memory.lock(RING, { write: true });
  return run(guest, disk, new ByLock(lock));
};
// The first times are for the compiler.
for (const warmUp of [byAccess, byLock]) warmUp();
const [accessors, locked] = [byAccess(), byLock()];
console.log(`by accessors:   ${accessors.toFixed(0)} ns a request`);
console.log(`through a lock: ${locked.toFixed(0)} ns a request`);
console.log(`${REQUESTS} requests of 512 bytes each way, every one of them right`);
