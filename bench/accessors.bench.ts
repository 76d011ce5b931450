/**
 * Accessors of guest memory beside a DataView of the same memory: `deno bench -A bench/accessors.bench.ts`.
 *
 * @module
 */

import { Mappable, MemoryRange, RegionManager, VaMapper } from "membacking";
import { ACCESSES } from "./layout.ts";

const SIZE = 2 ** 20;
const va = VaMapper.reserve(SIZE);
const regions = new RegionManager(va);
const file = Mappable.memfd("bench", SIZE);
const region = regions.newRegion({ name: "bench", range: MemoryRange.of(0, SIZE), priority: 0 });
region.addMapping({ rangeInRegion: MemoryRange.of(0, SIZE), mappable: file });
region.map();
const { memory } = regions;
const { bytes } = memory.lock(MemoryRange.of(0, SIZE), { write: true });
const view = new DataView(bytes.buffer);
const words = new Int32Array(bytes.buffer);
const quads = new BigUint64Array(bytes.buffer);

let sink = 0;
let wide = 0n;

function pair(group: string, checked: (at: number) => void, plain: (at: number) => void): void {
  for (const [name, access] of [["GuestMemory", checked], ["DataView", plain]] as const) {
    Deno.bench({
      name,
      group: `${ACCESSES} times ${group}`,
      baseline: name === "DataView",
      fn() {
        for (let i = 0; i < ACCESSES; i++) access((i & 255) * 64);
      },
    });
  }
}

pair("readUint8", (at) => sink ^= memory.readUint8(at), (at) => sink ^= view.getUint8(at));
pair("readUint16", (at) => sink ^= memory.readUint16(at), (at) => sink ^= view.getUint16(at, true));
pair("readUint32", (at) => sink ^= memory.readUint32(at), (at) => sink ^= view.getUint32(at, true));
pair("readBigUint64", (at) => wide = memory.readBigUint64(at), (at) => wide = view.getBigUint64(at, true));
pair("writeUint8", (at) => memory.writeUint8(at, 1), (at) => view.setUint8(at, 1));
pair("writeUint16", (at) => memory.writeUint16(at, 1), (at) => view.setUint16(at, 1, true));
pair("writeUint32", (at) => memory.writeUint32(at, 1), (at) => view.setUint32(at, 1, true));
pair("writeBigUint64", (at) => memory.writeBigUint64(at, 1n), (at) => view.setBigUint64(at, 1n, true));
pair(
  "compareExchangeUint32",
  (at) => memory.compareExchangeUint32(at, 1, 1),
  (at) => Atomics.compareExchange(words, at / 4, 1, 1),
);
pair("loadUint32", (at) => sink ^= memory.loadUint32(at), (at) => sink ^= Atomics.load(words, at / 4));
pair("storeUint32", (at) => memory.storeUint32(at, 1), (at) => Atomics.store(words, at / 4, 1));
pair("loadBigUint64", (at) => wide = memory.loadBigUint64(at), (at) => wide = Atomics.load(quads, at / 8));

/** Keeps what was read from being thrown away by the compiler. */
export function seen(): [number, bigint] {
  return [sink, wide];
}
