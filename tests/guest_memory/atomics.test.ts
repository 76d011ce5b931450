import { assert, assertEquals, assertThrows } from "@std/assert";
import { GuestMemoryError, GuestMemoryManager } from "membacking";
import { range } from "../support/units.ts";

const MIB = 2 ** 20;

function create(): GuestMemoryManager {
  const guest = GuestMemoryManager.create({
    maxAddress: 4 * MIB,
    ram: [{ ranges: [range(0, MIB), range(2 * MIB, 3 * MIB)] }],
  });
  guest.setRamVisibility(range(2 * MIB, 3 * MIB), "read-only");
  return guest;
}

Deno.test("atomic accesses are what plain ones are, of 16, 32 and 64 bits", () => {
  using guest = create();
  const { memory } = guest;
  memory.storeUint16(0x1002, 0x1_2345);
  memory.storeUint32(0x1004, 0x1_89ab_cdef);
  memory.storeBigUint64(0x1008, -1n);
  assertEquals([memory.readUint16(0x1002), memory.loadUint16(0x1002)], [0x2345, 0x2345]);
  assertEquals([memory.readUint32(0x1004), memory.loadUint32(0x1004)], [0x89ab_cdef, 0x89ab_cdef]);
  assertEquals([memory.readBigUint64(0x1008), memory.loadBigUint64(0x1008)], [2n ** 64n - 1n, 2n ** 64n - 1n]);
  assertEquals(memory.compareExchangeUint16(0x1002, 0, 1), 0x2345);
  assertEquals(memory.compareExchangeUint16(0x1002, 0x2345, 1), 0x2345);
  assertEquals(memory.compareExchangeUint32(0x1004, 0x89ab_cdef, 2), 0x89ab_cdef);
  assertEquals(memory.compareExchangeBigUint64(0x1008, 2n ** 64n - 1n, 3n), 2n ** 64n - 1n);
  assertEquals(
    [memory.loadUint16(0x1002), memory.loadUint32(0x1004), memory.loadBigUint64(0x1008)],
    [1, 2, 3n],
  );
});

Deno.test("an atomic access is aligned, mapped and writable, or an error that says what is wrong", () => {
  using guest = create();
  const { memory } = guest;
  assertThrows(() => memory.loadUint16(1), RangeError, "Address 0x1 of an atomic access is not a multiple of 2");
  assertThrows(() => memory.storeUint32(2, 0), RangeError, "not a multiple of 4");
  assertThrows(() => memory.compareExchangeBigUint64(4, 0n, 0n), RangeError, "not a multiple of 8");
  assertEquals(assertThrows(() => memory.loadUint32(MIB), GuestMemoryError).kind, "not-mapped");
  assertEquals(assertThrows(() => memory.storeUint16(2 * MIB, 0), GuestMemoryError).kind, "read-only");
  assertEquals(memory.loadBigUint64(2 * MIB), 0n);
  assertEquals(assertThrows(() => memory.loadBigUint64(4 * MIB), GuestMemoryError).kind, "out-of-range");
  assertThrows(() => memory.storeUint32(0, 1n as unknown as number), TypeError, "A number is needed, got bigint");
  assertThrows(() => memory.storeBigUint64(0, 1 as unknown as bigint), TypeError, "A bigint is needed, got number");
});

Deno.test("atomic accesses are never torn, and a compare-exchange loses no count between threads", async () => {
  using guest = create();
  const { memory } = guest;
  const address = memory.hostAddress(0, 16, { write: true });
  const source = `
    const at = Deno.UnsafePointer.create(${address}n);
    const words = new BigUint64Array(Deno.UnsafePointerView.getArrayBuffer(at, 16));
    let torn = 0;
    for (let i = 0; i < 200_000; i++) {
      const value = Atomics.load(words, 0);
      if (value >> 32n !== (value & 0xffff_ffffn)) torn++;
      while (true) {
        const count = Atomics.load(words, 1);
        if (Atomics.compareExchange(words, 1, count, count + 1n) === count) break;
      }
    }
    postMessage(torn);
  `;
  const worker = new Worker(URL.createObjectURL(new Blob([source])), { type: "module" });
  try {
    let torn: number | undefined;
    const done = new Promise<void>((resolve) => {
      worker.onmessage = ({ data }) => {
        torn = data;
        resolve();
      };
    });
    let mine = 0n;
    while (torn === undefined) {
      for (let i = 0n; i < 20_000n; i++) {
        const half = i & 0xffffn;
        memory.storeBigUint64(0, half << 32n | half);
        while (true) {
          const count = memory.loadBigUint64(8);
          if (memory.compareExchangeBigUint64(8, count, count + 1n) === count) break;
        }
        mine++;
      }
      await new Promise((resolve) => setTimeout(resolve, 0));
    }
    await done;
    assertEquals(torn, 0);
    assert(mine > 0n);
    assertEquals(memory.loadBigUint64(8), mine + 200_000n);
  } finally {
    worker.terminate();
  }
});
