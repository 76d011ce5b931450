/**
 * What the guest moves about in memory: shadow RAM over the ROM, by the PAM registers of the host bridge, and the
 * windows of the card, by its BARs.
 *
 * @module
 */

import { type DeviceMemory, type Mappable, MemoryRange, type RegionHandle, type RegionOptions } from "membacking";
import { CARD_MEMORY_LENGTH, REGISTERS_LENGTH } from "./card.ts";
import { PAM_RANGES, type PamChange, type Visibility } from "./pam.ts";

/** Where requests go: in the vCPU's thread a `SyncRegionManagerClient`, each of whose calls waits for the answer. */
export interface Regions {
  newRegion(options: RegionOptions): RegionHandle;
  newDeviceMemory(name: string, length: number): DeviceMemory;
  memfd(name: string, size: number): Mappable;
  batch<T>(requests: () => T): T;
}

/** A request that was carried out. */
export interface Request {
  /** What the guest did. */
  readonly cause: string;
  /** What is different in memory now. */
  readonly effects: readonly string[];
}

/** A part of shadow RAM that is all the same. */
interface Run {
  readonly range: MemoryRange;
  readonly to: Visibility;
}

/** RAM has priority 255, device memory 0, the ROM 1. */
const SHADOW_PRIORITY = 2;
const SHADOW = new MemoryRange(0xc_0000, 0x10_0000);

/** The moving parts of the machine's memory. Each request is all or nothing: one that throws has changed nothing. */
export class ChipsetMemory {
  readonly #regions: Regions;
  readonly #around: (request: Request, carryOut: () => void) => void;
  readonly #shadowFile: Mappable;
  readonly #windows: readonly DeviceMemory[];
  #shadow: readonly RegionHandle[] = [];
  #visibility: ReadonlyMap<number, Visibility> = new Map();

  /** All of it goes through `regions`. `around` carries each request out, and may take notes. */
  constructor(regions: Regions, around: (request: Request, carryOut: () => void) => void) {
    this.#regions = regions;
    this.#around = around;
    this.#shadowFile = regions.memfd("shadow", SHADOW.length);
    const registers = regions.newDeviceMemory("card registers", REGISTERS_LENGTH); // nothing in it: accesses are exits
    const memory = regions.newDeviceMemory("card memory", CARD_MEMORY_LENGTH);
    using file = regions.memfd("card", CARD_MEMORY_LENGTH);
    memory.map({ offset: 0, mappable: file, length: CARD_MEMORY_LENGTH });
    this.#windows = [registers, memory];
  }

  /**
   * Shadow RAM is a region for each run of PAM ranges that are the same. All go and come anew with every change: since
   * that is one request, what is the same before and after costs nothing.
   */
  setVisibility(changes: readonly PamChange[], cause: string): void {
    const visibility = new Map(this.#visibility);
    for (const { range, to } of changes) visibility.set(range.start, to);
    const ranges = PAM_RANGES.map((range) => ({ range, to: visibility.get(range.start) ?? "unmapped" as const }));
    this.#around({ cause, effects: runs(changes).map(describe) }, () => {
      this.#shadow = this.#regions.batch(() => {
        for (const region of this.#shadow) region[Symbol.dispose]();
        return runs(ranges).filter(({ to }) => to !== "unmapped").map((run) => this.#shadowRegion(run));
      });
    });
    this.#visibility = visibility;
  }

  /** Moves one of the card's windows, or takes it away. */
  placeBar(bar: number, gpa: number | null, cause: string): void {
    const window = this.#windows[bar];
    if (window === undefined) throw new RangeError(`The card has no BAR ${bar}`);
    const effect = gpa === null ? `${window.name} gone` : `${window.name} at 0x${gpa.toString(16)}`;
    this.#around({ cause, effects: [effect] }, () => {
      if (gpa === null) window.unmapFromGuest();
      else window.mapToGuest(gpa, true);
    });
  }

  #shadowRegion({ range, to }: Run): RegionHandle {
    const region = this.#regions.newRegion({ name: "shadow RAM", range, priority: SHADOW_PRIORITY });
    region.addMapping({
      rangeInRegion: MemoryRange.of(0, range.length),
      mappable: this.#shadowFile,
      fileOffset: range.start - SHADOW.start,
    });
    region.map({ writable: to === "read-write" });
    return region;
  }
}

/** Joins neighbours that are the same. */
function runs(ranges: readonly Run[]): Run[] {
  const joined: Run[] = [];
  for (const { range, to } of ranges) {
    const last = joined.at(-1);
    if (last?.range.end === range.start && last.to === to) {
      joined[joined.length - 1] = { range: new MemoryRange(last.range.start, range.end), to };
    } else {
      joined.push({ range, to });
    }
  }
  return joined;
}

function describe({ range, to }: Run): string {
  return `${range} ${to === "unmapped" ? "no RAM" : to === "read-only" ? "RAM, read-only" : "RAM"}`;
}
