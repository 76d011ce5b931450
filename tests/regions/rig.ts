/**
 * A region manager between recording targets, for scenario tests.
 *
 * @module
 */

import { type Logger, Mappable, type Quiesce, type RegionHandle, RegionManager } from "membacking";
import {
  Faults,
  type RecordedCall,
  RecordingDmaTarget,
  RecordingPartition,
  type RecordingPartitionOptions,
  RecordingVa,
} from "membacking/testing";
import { range } from "../support/units.ts";

/** What a rig is made with. */
export interface RigOptions {
  /** The length of the reservation in bytes; 0x100000 when left out. */
  length?: number;
  overlap?: "nested" | "any";
  logger?: Logger;
  quiesce?: Quiesce;
  /** How many pieces the host range can hold. */
  limit?: number;
}

/** What a region of a rig is made with; what is left out has a simple default. */
export interface RigRegion {
  name?: string;
  priority?: number;
  type?: "ram" | "device";
  holes?: "exit" | "fault";
}

/** A region manager whose targets all log to `take()`. */
export class Rig implements Disposable {
  readonly calls: RecordedCall[] = [];
  readonly faults: Faults = new Faults();
  readonly va: RecordingVa<Mappable>;
  readonly manager: RegionManager;
  readonly #files: Mappable[] = [];
  #regions = 0;

  constructor(options: RigOptions = {}) {
    const { length = 0x10_0000, limit, ...rest } = options;
    const { calls, faults } = this;
    this.va = new RecordingVa(length, { name: "va", calls, faults, ...(limit !== undefined && { limit }) });
    this.manager = new RegionManager(this.va, rest);
  }

  /** A memfd of `length` bytes that is closed with the rig. */
  file(length = 0x10_0000): Mappable {
    const file = Mappable.memfd(`file-${this.#files.length}`, length);
    this.#files.push(file);
    return file;
  }

  /** Attaches a recording partition. */
  partition(
    options: RecordingPartitionOptions & { offset?: number; pin?: boolean } = {},
  ): { target: RecordingPartition; handle: Disposable } {
    const { offset, pin, ...rest } = options;
    const { calls, faults } = this;
    const target = new RecordingPartition({ calls, faults, ...rest });
    const handle = this.manager.addPartition(target, {
      ...(offset !== undefined && { offset }),
      ...(pin !== undefined && { pin }),
    });
    return { target, handle };
  }

  /** Attaches a recording DMA target. */
  dmaTarget(
    options: { name?: string; needsFd?: boolean } = {},
  ): { target: RecordingDmaTarget<Mappable>; handle: Disposable } {
    const { needsFd, ...rest } = options;
    const { calls, faults } = this;
    const target = new RecordingDmaTarget<Mappable>({ calls, faults, ...rest });
    const handle = this.manager.addDmaTarget(target, { ...(needsFd !== undefined && { needsFd }) });
    return { target, handle };
  }

  /** A region without mappings. */
  region(start: number, end: number, options: RigRegion = {}): RegionHandle {
    const { name = `region-${this.#regions++}`, priority = 0, ...rest } = options;
    return this.manager.newRegion({ name, range: range(start, end), priority, ...rest });
  }

  /** A mapped region, backed in full by `file` from `fileOffset` on; by a file of its own when none is given. */
  backed(
    start: number,
    end: number,
    options: RigRegion & { file?: Mappable | "private"; fileOffset?: number; writable?: boolean } = {},
  ): RegionHandle {
    const { file = this.file(), fileOffset = 0, writable = true, ...rest } = options;
    const region = this.region(start, end, rest);
    region.addMapping({ rangeInRegion: range(0, end - start), mappable: file, fileOffset, writable });
    region.map();
    return region;
  }

  /** The calls since the last time, as text; then forgotten. */
  take(): string[] {
    return this.calls.splice(0).map(({ target, method, range, writable, error }) => {
      const access = writable === undefined ? "" : writable ? " rw" : " ro";
      return `${target}.${method} ${range}${access}${error === undefined ? "" : " failed"}`;
    });
  }

  /** What host memory holds, as text: range, file by the order of its making, file offset, access. */
  memory(): string[] {
    return this.va.ranges.map(({ range, mappable, fileOffset, writable }) => {
      const file = mappable === null ? "private" : this.#files.findIndex((file) => file.fd === mappable.fd);
      return `${range} ${file}@0x${fileOffset.toString(16)} ${writable ? "rw" : "ro"}`;
    });
  }

  [Symbol.dispose](): void {
    this.faults.reset();
    this.manager[Symbol.dispose]();
    for (const file of this.#files) file[Symbol.dispose]();
  }
}

/** The ranges a partition holds, as text. */
export function slots(partition: RecordingPartition): string[] {
  return partition.ranges.map(({ range, access }) => `${range} ${access.writable ? "rw" : "ro"}`);
}

/** The mappings a DMA target holds, as text. */
export function dma(target: RecordingDmaTarget<Mappable>): string[] {
  return target.mappings.map(({ range, writable }) => `${range} ${writable ? "rw" : "ro"}`);
}

/** Where a region is visible, as text. */
export function visible(region: RegionHandle): string[] {
  return region.visible.map(String);
}
