/**
 * A region manager over real host memory, with real virtual machines whose guests say what they see.
 *
 * @module
 */

import {
  type Access,
  Mappable,
  type MemoryRange,
  type OverlapRule,
  type Partition,
  type Quiesce,
  type RegionHandle,
  RegionManager,
  VaMapper,
} from "membacking";
import type { KvmVm } from "membacking/kvm";
import { Witness, type WitnessOptions } from "./witness.ts";
import { PAGE, range } from "../support/units.ts";

/** The word that page `page` of the file with the tag `tag` is full of. */
export function stamp(tag: number, page: number): number {
  return tag * 0x1_0000 + page;
}

/** The words of `count` pages from `page` on. */
export function stamps(tag: number, page: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => stamp(tag, page + i));
}

/** A memfd of which every word is the stamp of its page. */
export function stampedFile(tag: number, length: number): Mappable {
  const words = new Uint32Array(length / 4);
  for (let i = 0; i < words.length; i++) words[i] = stamp(tag, Math.floor(i * 4 / PAGE));
  const file = Mappable.memfd(`file-${tag}`, length);
  file.write(0, new Uint8Array(words.buffer));
  return file;
}

/** Passes everything on to a VM, and keeps a list of the changes: each of them is one ioctl for a memory slot. */
export class Observed implements Partition {
  /** The changes, such as `"map 0x1000-0x3000 rw"`. */
  readonly ioctls: string[] = [];

  /** `capacity` is how many slots it may have; as many as the VM can when left out. */
  constructor(readonly vm: KvmVm, readonly capacity: number = vm.capacity) {}

  get name(): string {
    return this.vm.name;
  }

  get disposed(): boolean {
    return this.vm.disposed;
  }

  mapRange(hva: number, range: MemoryRange, access: Access): void {
    this.ioctls.push(`map ${range} ${access.writable ? "rw" : "ro"}`);
    this.vm.mapRange(hva, range, access);
  }

  unmapRange(range: MemoryRange): void {
    this.ioctls.push(`unmap ${range}`);
    this.vm.unmapRange(range);
  }

  prefetchRange(range: MemoryRange): void {
    this.vm.prefetchRange(range);
  }

  pinRange(range: MemoryRange): void {
    this.vm.pinRange(range);
  }

  unpinRange(range: MemoryRange): void {
    this.vm.unpinRange(range);
  }

  /** The changes since the last time. */
  take(): string[] {
    return this.ioctls.splice(0);
  }
}

/** What a `Machine` is made with. */
export interface MachineOptions {
  /** The length of the reservation in bytes: 64 MiB when left out. */
  length?: number;
  overlap?: OverlapRule;
  quiesce?: Quiesce;
}

/** What a region of a `Machine` is made with. */
export interface MachineRegion {
  priority?: number;
  holes?: "exit" | "fault";
  type?: "ram" | "device";
}

/** A region manager, its memory and its guests. */
export class Machine implements Disposable {
  readonly va: VaMapper;
  readonly regions: RegionManager;
  readonly #stack = new DisposableStack();
  #made = 0;

  constructor(options: MachineOptions = {}) {
    const { length = 2 ** 26, ...rest } = options;
    this.va = this.#stack.use(VaMapper.reserve(length));
    this.regions = this.#stack.use(new RegionManager(this.va, rest));
  }

  /** A VM with a guest, not attached yet. */
  witness(options: WitnessOptions = {}): Witness {
    return this.#stack.use(new Witness(options));
  }

  /** A VM with a guest, attached to the region manager. */
  attached(options: WitnessOptions & { offset?: number; pin?: boolean } = {}): Witness {
    const { offset = 0, pin = false, ...rest } = options;
    const witness = this.witness(rest);
    this.regions.addPartition(witness.vm, { offset, pin });
    return witness;
  }

  /** A stamped memfd that is closed with the machine: 1 MiB when nothing else is said. */
  file(tag: number, length = 2 ** 20): Mappable {
    return this.#stack.use(stampedFile(tag, length));
  }

  /** A region without mappings, not mapped. */
  region(start: number, end: number, options: MachineRegion = {}): RegionHandle {
    const { priority = 0, ...rest } = options;
    return this.regions.newRegion({ name: `region-${this.#made++}`, range: range(start, end), priority, ...rest });
  }

  /** A mapped region that shows `file` from the beginning. */
  backed(
    start: number,
    end: number,
    file: Mappable | "private",
    options: MachineRegion & { writable?: boolean; fileOffset?: number } = {},
  ): RegionHandle {
    const { writable = true, fileOffset = 0, ...rest } = options;
    const region = this.region(start, end, rest);
    region.addMapping({ rangeInRegion: range(0, end - start), mappable: file, fileOffset, writable });
    region.map();
    return region;
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}
