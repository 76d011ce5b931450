/**
 * Memory with known contents, that an attack must not reach.
 *
 * @module
 */

import {
  type DeviceMemory,
  GuestMemoryManager,
  Mappable,
  MemoryRange,
  type RegionHandle,
  RegionManager,
  VaMapper,
} from "membacking";
import { RecordingDmaTarget, RecordingPartition } from "membacking/testing";
import type { Notes } from "./family.ts";

const PAGE = 0x1000;
const LENGTH = 64 * PAGE;
const KNOWN = 0x5a;
/** How many objects are kept at hand. */
const MOST = 300;

/** A region manager whose one region has known contents. */
export class Known implements Disposable {
  readonly va = VaMapper.reserve(2 ** 24);
  readonly manager = new RegionManager(this.va);
  readonly file = Mappable.memfd("known", LENGTH);
  readonly region: RegionHandle;

  constructor() {
    this.region = this.manager.newRegion({ name: "known", range: MemoryRange.of(0, LENGTH), priority: 100 });
    this.region.addMapping({ rangeInRegion: MemoryRange.of(0, LENGTH), mappable: this.file });
    this.region.map();
    this.manager.memory.fill(0, LENGTH, KNOWN);
  }

  /** Says whether the contents are as they were, and the manager at work. */
  check(notes: Notes): void {
    const bytes = this.manager.memory.read(0, LENGTH);
    notes.claim(bytes.every((byte) => byte === KNOWN), "memory that was not attacked has changed");
    this.region.unmap();
    this.region.map();
    notes.claim(this.manager.memory.readUint8(PAGE) === KNOWN, "memory that was not attacked does not come back");
  }

  [Symbol.dispose](): void {
    this.manager[Symbol.dispose]();
    this.va[Symbol.dispose]();
    this.file[Symbol.dispose]();
  }
}

/** Objects of all kinds, for attacks to use in each other's place. */
export class Stage implements Disposable {
  /** What is alive, and what is disposed: to be handed to anything. */
  readonly live: object[] = [];
  readonly manager: RegionManager;
  readonly guest: GuestMemoryManager;
  readonly device: DeviceMemory;
  readonly partition = new RecordingPartition({ name: "stage" });
  readonly dma = new RecordingDmaTarget();
  readonly files: readonly Mappable[];
  readonly regions: readonly RegionHandle[];

  constructor() {
    const va = VaMapper.reserve(2 ** 24);
    this.manager = new RegionManager(va, { overlap: "any" });
    this.files = [Mappable.memfd("one", LENGTH), Mappable.memfd("two", LENGTH), Mappable.memfd("gone", PAGE)];
    this.regions = [1, 2, 3].map((priority) => {
      const range = MemoryRange.of(priority * 8 * PAGE, 16 * PAGE);
      const region = this.manager.newRegion({ name: `region ${priority}`, range, priority });
      const mappable = this.files[priority % 2] ?? "private";
      region.addMapping({ rangeInRegion: MemoryRange.of(0, 8 * PAGE), mappable });
      region.map();
      return region;
    });
    this.guest = GuestMemoryManager.create({ maxAddress: 2 ** 24, ram: [{ ranges: [MemoryRange.of(0, LENGTH)] }] });
    this.device = this.guest.newDeviceMemory("device", 16 * PAGE);
    this.manager.addPartition(this.partition);
    this.manager.addDmaTarget(this.dma);
    this.files[2]?.[Symbol.dispose]();
    this.live.push(
      ...[va, this.manager, this.manager.memory, this.guest, this.guest.memory, this.device, this.partition, this.dma],
      ...[...this.files, ...this.regions],
    );
  }

  /** Keeps what a call gave, so that it can be used and will be disposed. */
  keep(value: unknown): void {
    if (typeof value !== "object" || value === null || !(Symbol.dispose in value)) return;
    if (this.live.length < MOST) {
      this.live.push(value);
      return;
    }
    try {
      (value as Disposable)[Symbol.dispose]();
    } catch {
      this.live.push(value);
    }
  }

  /**
   * Disposes everything, the newest first, and notes what that says. Returns whether all could be disposed: what a target
   * that was tampered with has not given back stays, and what is behind it.
   */
  dispose(notes: Notes): boolean {
    let all = true;
    for (const one of [...this.live, ...this.live].reverse()) {
      notes.try("dispose", () => {
        try {
          (one as Partial<Disposable>)[Symbol.dispose]?.();
        } catch (error) {
          all = false;
          throw error;
        }
      });
    }
    return all;
  }

  [Symbol.dispose](): void {
    this.manager[Symbol.dispose]();
    this.guest[Symbol.dispose]();
  }
}
