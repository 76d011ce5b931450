/**
 * Looking at guest memory, locking it, and moving bytes from a file: `deno bench -A bench/looks.bench.ts`.
 *
 * @module
 */

import { GuestMemoryManager, Mappable, type MemoryPiece, MemoryRange } from "membacking";

const GIB = 2 ** 30;
const guest = GuestMemoryManager.create({
  maxAddress: 8 * GIB,
  ram: [{ ranges: [new MemoryRange(0, GIB)] }],
  x86Legacy: true,
});
const { memory } = guest;
const file = Mappable.memfd("bench", 2 ** 20);
const page = new MemoryRange(0x10_0000, 0x10_1000);

let found: MemoryPiece | null = null;
let mapped = false;
let address = 0;
let at = 0;
/** A page of RAM, another one each time. */
const next = (): number => at = (at + 0x5000) % GIB;

Deno.bench("find", () => void (found = memory.find(next())));
Deno.bench("find nothing", () => void (found = memory.find(4 * GIB + next())));
Deno.bench("isMapped", () => void (mapped = memory.isMapped(next(), 64)));
Deno.bench("hostAddress", () => void (address = memory.hostAddress(next(), 64)));
Deno.bench("lock a page and let go", () => memory.lock(page, { write: true })[Symbol.dispose]());
Deno.bench("readFrom a memfd, 4 KiB", () => memory.readFrom(file, 0, next(), 4096));
Deno.bench("discard a page", () => guest.discard(page));

/** Keeps what was found from being thrown away by the compiler. */
export function seen(): [MemoryPiece | null, boolean, number] {
  return [found, mapped, address];
}
