/**
 * Accesses guest memory at random while the map changes and someone else truncates a file behind it. Run in a process
 * of its own: what it must not do is die of a signal.
 *
 * Arguments: seed, milliseconds.
 *
 * @module
 */

import {
  GuestMemoryError,
  GuestMemoryManager,
  Mappable,
  MappingError,
  MemoryLockedError,
  MemoryRange,
  RegionOverlapError,
} from "membacking";
import { PAGE } from "../support/units.ts";

const MIB = 2 ** 20;
const END = 16 * MIB;
const FILE_PAGES = 8;

const [seed = "1", time = "1000"] = Deno.args;
let state = Number(seed);

/** An integer in 0..below, from a generator that can be repeated. */
function random(below: number): number {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return Math.floor(state / 2 ** 32 * below);
}

function pick<T>(...choices: readonly T[]): T {
  return choices[random(choices.length)] as T;
}

const path = Deno.makeTempFileSync({ dir: "/dev/shm" });
Deno.truncateSync(path, FILE_PAGES * PAGE);
// The other one that has the file open: a thread that shortens and lengthens it all the time.
const truncater = new Worker(
  `data:text/javascript,${
    encodeURIComponent(`
      const file = Deno.openSync(${JSON.stringify(path)}, { write: true });
      postMessage("ready");
      // Not for ever: a thread that spins keeps a process alive that failed.
      const until = Date.now() + ${Number(time) + 10_000};
      for (let i = 0; Date.now() < until; i++) file.truncateSync(i % 3 === 0 ? 0 : i * 977 % ${FILE_PAGES * PAGE + 1});
    `)
  }`,
  { type: "module" },
);
await new Promise((resolve) => truncater.onmessage = resolve);

const guest = GuestMemoryManager.create({
  maxAddress: END,
  ram: [
    { ranges: [new MemoryRange(0, 2 * MIB)] },
    { ranges: [new MemoryRange(2 * MIB, 3 * MIB)], backing: "private" },
    { ranges: [new MemoryRange(END - MIB, END)] },
  ],
  x86Legacy: false,
  overlap: "any",
});
const { memory } = guest;
const file = Mappable.open(path, { write: true });
const device = guest.newDeviceMemory("device", 2 * FILE_PAGES * PAGE);
const locks: { bytes: Uint8Array; [Symbol.dispose](): void }[] = [];

/** An address that is likely to be near something. */
function address(): number {
  const near = pick(0, MIB, 2 * MIB, 3 * MIB, 8 * MIB, 8 * MIB + FILE_PAGES * PAGE, END - MIB, END);
  return pick(
    near + random(64) - 32,
    near + random(20) * PAGE - 10 * PAGE + random(64) - 32,
    random(END),
    random(2 ** 32) * random(2 ** 20),
    pick(-1, 0.5, NaN, 2 ** 52, 2 ** 53, -Infinity),
  );
}

function length(): number {
  return pick(random(16), random(3 * PAGE), random(MIB), pick(-1, 0.5, NaN, 2 ** 53));
}

function bytes(): Uint8Array<ArrayBuffer> {
  return new Uint8Array(pick(random(16), random(3 * PAGE), random(MIB))).fill(random(256));
}

function change(): void {
  const ram = pick(...guest.ramRanges);
  switch (random(8)) {
    case 0:
      return guest.setRamVisibility(ram, pick("unmapped", "read-only", "read-write"));
    case 1:
      return guest.setRamVisibility(ram, "read-write");
    case 2:
      return device.map({
        offset: random(FILE_PAGES) * PAGE,
        mappable: file,
        length: (1 + random(FILE_PAGES)) * PAGE,
        writable: random(2) === 0,
      });
    case 3:
      return device.unmap(random(FILE_PAGES) * PAGE, (1 + random(FILE_PAGES)) * PAGE);
    case 4:
      return device.mapToGuest(pick(3 * MIB, 3 * MIB - 4 * PAGE, 8 * MIB, END - MIB - 4 * PAGE), random(2) === 0);
    case 5:
      return device.unmapFromGuest();
    case 6: {
      const start = Math.floor(random(END) / PAGE) * PAGE;
      locks.push(memory.lock(MemoryRange.of(start, (1 + random(16)) * PAGE), { write: random(2) === 0 }));
      return;
    }
    default:
      return locks.splice(random(locks.length), 1)[0]?.[Symbol.dispose]();
  }
}

function access(): void {
  switch (random(16)) {
    case 0:
      return void memory.read(address(), length());
    case 1:
      return memory.readInto(address(), bytes());
    case 2:
      return memory.write(address(), bytes());
    case 3:
      return memory.fill(address(), length(), random(256));
    case 4:
      return void memory.readUint8(address());
    case 5:
      return void memory.readUint16(address());
    case 6:
      return void memory.readUint32(address());
    case 7:
      return void memory.readBigUint64(address());
    case 8:
      return memory.writeUint8(address(), random(256));
    case 9:
      return memory.writeUint16(address(), random(256));
    case 10:
      return memory.writeUint32(address(), random(256));
    case 11:
      return memory.writeBigUint64(address(), BigInt(random(256)));
    case 12:
      return void memory.compareExchangeUint32(address(), 0, 1);
    default: {
      const lock = pick(...locks);
      if (lock === undefined || lock.bytes.length === 0) return;
      lock.bytes[random(lock.bytes.length)] = random(256);
    }
  }
}

const until = performance.now() + Number(time);
const counts = { done: 0, refused: 0 };
while (performance.now() < until) {
  for (let i = 0; i < 100; i++) {
    try {
      if (random(10) === 0) change();
      else access();
      counts.done++;
    } catch (error) {
      const expected = [GuestMemoryError, MappingError, MemoryLockedError, RegionOverlapError, RangeError, TypeError];
      if (!expected.some((type) => error instanceof type)) throw error;
      counts.refused++;
    }
  }
}
for (const lock of locks) lock[Symbol.dispose]();
device[Symbol.dispose]();
file[Symbol.dispose]();
guest[Symbol.dispose]();
Deno.removeSync(path);
console.log(JSON.stringify(counts));
// The other thread goes on for a while.
Deno.exit();
