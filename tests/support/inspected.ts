/**
 * What `inspect()` could give, made by hand.
 *
 * @module
 */

import type { InspectMapping, InspectNode, InspectRegion } from "membacking";

/** A map of `regions`, and nothing else unless said. */
export function map(regions: readonly InspectRegion[], rest: Partial<InspectNode> = {}): InspectNode {
  return {
    base: 0x7f00_0000_0000,
    length: 2 ** 40,
    partitions: [],
    dmaTargets: [],
    locks: [],
    hostMappings: 1,
    outOfStep: [],
    ...rest,
    regions,
  };
}

/** A region that is visible at `visible`, or not mapped if that is `null`. */
export function region(
  id: number,
  name: string,
  priority: number,
  range: string,
  visible: readonly string[] | null,
  mappings: readonly InspectMapping[],
): InspectRegion {
  return {
    id,
    name,
    range,
    priority,
    type: "ram",
    holes: "exit",
    mapParams: visible && { writable: true, executable: true, prefetch: false },
    active: visible !== null && visible.length > 0,
    visible: visible ?? [],
    mappings,
  };
}

/** One mapping of a region, all of whose offsets are as good as any. */
export function mapping(
  range: string,
  backing: string,
  writable = true,
  fileOffset: number | null = 0,
): InspectMapping {
  return { range, rangeInRegion: range, writable, fileOffset, backing, copyOnWrite: false };
}

/** Something of everything. */
export const PC = map([
  region(1, "ram", 0, "0x0-0x40000000", ["0x0-0xa0000", "0xc0000-0x40000000"], [
    mapping("0x0-0x40000000", 'memfd "memory"'),
  ]),
  region(2, "vga", 9, "0xa0000-0xc0000", ["0xa0000-0xc0000"], [
    mapping("0xa0000-0xb0000", "private", true, null),
  ]),
  region(3, "bios", 9, "0x80000000-0x80010000", ["0x80000000-0x80010000"], [
    mapping("0x80000000-0x80010000", '"/usr/share/bios.bin"', false),
  ]),
  region(4, "bar", 4, "0x20000000-0x20010000", null, []),
], {
  partitions: [{
    name: "vm",
    offset: 0x1000,
    pin: false,
    ranges: [
      { range: "0x0-0xa0000", writable: true, executable: true },
      { range: "0x80000000-0x80010000", writable: false, executable: true },
    ],
  }],
  dmaTargets: [{ name: "nic", ranges: ["0xc0000-0x40000000"] }],
});
