/**
 * A machine whose memory a native guest, this thread, a Worker and a device write, all at random, while requests change it,
 * some of which fail.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import {
  type Access,
  type DirtyTracker,
  GuestMemoryError,
  type LockedMemory,
  Mappable,
  MappingError,
  MemoryLockedError,
  type MemoryRange,
  PageSet,
  type Partition,
  type Quiesce,
  type RegionHandle,
  RegionManager,
  VaMapper,
} from "membacking";
import type { KvmVm } from "membacking/kvm";
import { internalsOf } from "../../src/regions/region_manager.ts";
import { Device } from "../../examples/precopy/device.ts";
import { DATA_AT, ScribblingGuest } from "../../examples/precopy/guest.ts";
import { preCopy, SecondMemory } from "../../examples/precopy/precopy.ts";
import { WritingWorker } from "../../examples/precopy/worker_thread.ts";
import { PAGE, range } from "../support/units.ts";

export const END = 0x80_0000;
/** Where holes are punched, regions are shown and hidden, and one moves about. */
export const HOLES = { start: 0x40_0000, end: 0x48_0000 };
const OVERLAY = { start: 0x50_0000, end: 0x54_0000 };
const PLACES = [0x60_0000, 0x63_0000, 0x68_0000];
const MOVER = 0x2_0000;

const FLAKY = "Injected failure";

/** A VM some of whose calls fail, before they have done something or after. */
export class Flaky implements Partition {
  failures = 0;
  #fails = false;

  constructor(readonly vm: KvmVm) {}

  get disposed(): boolean {
    return this.vm.disposed;
  }

  /** Lets one of the next calls fail. */
  failSoon(): void {
    this.#fails = true;
  }

  mapRange(hva: number, range: MemoryRange, access: Access): void {
    this.#run(() => this.vm.mapRange(hva, range, access));
  }

  unmapRange(range: MemoryRange): void {
    this.#run(() => this.vm.unmapRange(range));
  }

  setDirtyLog(range: MemoryRange, on: boolean): void {
    this.vm.setDirtyLog(range, on);
  }

  takeDirty(range: MemoryRange, mark: (start: number, end: number) => void): void {
    this.vm.takeDirty(range, mark);
  }

  #run(act: () => void): void {
    if (!this.#fails || Math.random() < 0.5) return act();
    this.#fails = false;
    this.failures++;
    if (Math.random() < 0.5) act();
    throw new Error(FLAKY);
  }
}

/** A machine that is written from all sides. */
export class Busy implements AsyncDisposable {
  readonly regions: RegionManager;
  readonly guest: ScribblingGuest;
  readonly device: Device;
  readonly partition: Flaky;
  readonly ram: Mappable;
  readonly #stack: AsyncDisposableStack;
  readonly #main: RegionHandle;
  readonly #overlay: RegionHandle;
  #mover: RegionHandle;
  readonly #other: Mappable;
  worker: WritingWorker | undefined;
  #locks: Disposable[] = [];
  #held: LockedMemory | undefined;
  requests = 0;

  constructor(options: { dirtyLog: "bitmap" | "ring"; hook: boolean; device?: Device }) {
    const stack = this.#stack = new AsyncDisposableStack();
    this.ram = stack.use(Mappable.memfd("ram", END));
    const other = this.#other = stack.use(Mappable.memfd("other", 0x40_0000));
    other.write(0x30_0000, crypto.getRandomValues(new Uint8Array(0x1_0000)));
    const quiesce: Quiesce = () => this.guest.pause();
    const va = stack.use(VaMapper.reserve(END));
    const regions = this.regions = stack.use(
      new RegionManager(va, { overlap: "any", ...(options.hook && { quiesce }) }),
    );
    this.guest = stack.use(ScribblingGuest.create(options.dirtyLog));
    this.device = stack.use(options.device ?? new Device());
    const region = (name: string, span: { start: number; end: number }, priority: number, file: Mappable) => {
      const made = regions.newRegion({ name, range: range(span.start, span.end), priority });
      const length = span.end - span.start;
      made.addMapping({
        rangeInRegion: range(0, length),
        mappable: file,
        fileOffset: file === this.ram ? span.start : span.start % 0x40_0000,
      });
      made.map();
      return made;
    };
    // The program has a slot of its own: taking memory away from under running code is another story.
    region("low", { start: 0, end: DATA_AT }, 0, this.ram);
    this.#main = region("main", { start: DATA_AT, end: END }, 0, this.ram);
    this.#overlay = region("overlay", OVERLAY, 5, other);
    this.#mover = region("mover", { start: PLACES[0]!, end: PLACES[0]! + MOVER }, 7, other);
    this.partition = new Flaky(this.guest.vm);
    regions.addDmaTarget(this.device, { needsFd: true });
  }

  attach(partition: Partition = this.partition): void {
    this.regions.addPartition(partition);
  }

  async startGuest(idle: number): Promise<void> {
    await this.guest.start(this.regions.memory, { end: END, idle, seed: Math.floor(Math.random() * 1e9) });
  }

  async startWorker(): Promise<void> {
    this.worker = await WritingWorker.start(this.regions, DATA_AT, END);
  }

  /** A random multiple of 8. */
  somewhere(start = DATA_AT, end = END): number {
    return start + 8 * Math.floor(Math.random() * ((end - start) / 8 - 1));
  }

  ownerWrites(): void {
    const { memory } = this.regions;
    const gpa = this.somewhere();
    try {
      switch (Math.floor(Math.random() * 5)) {
        case 0:
          return memory.write(gpa, crypto.getRandomValues(new Uint8Array(5000)));
        case 1:
          return memory.storeBigUint64(gpa, BigInt(gpa) * 77n);
        case 2:
          return void memory.compareExchangeUint32(gpa, memory.readUint32(gpa), Math.random() * 2 ** 32);
        case 3:
          return memory.readFrom(this.#other, Math.floor(Math.random() * 1000), gpa, 3000);
        default:
          return memory.writeUint32(gpa + 6, Math.random() * 2 ** 32);
      }
    } catch (error) {
      if (!(error instanceof GuestMemoryError)) throw error;
    }
  }

  lockAndWrite(): void {
    if (this.#locks.length > 3) this.releaseLocks();
    const at = this.somewhere() & -PAGE;
    try {
      const lock = this.regions.memory.lock(range(at, at + PAGE), { write: true });
      this.#locks.push(lock);
      const { bytes } = lock;
      // Writes at the end of its life too, when somebody may have looked in between.
      this.#locks.push({
        [Symbol.dispose]: () => void (bytes[Math.floor(Math.random() * PAGE)] = Math.random() * 256),
      });
    } catch (error) {
      if (!(error instanceof GuestMemoryError)) throw error;
    }
  }

  releaseLocks(): void {
    for (const lock of this.#locks.reverse()) lock[Symbol.dispose]();
    this.#locks = [];
  }

  deviceWrites(): void {
    this.device.write(this.somewhere(), crypto.getRandomValues(new Uint8Array(8)));
  }

  /** Makes a random request, which fails now and then. */
  request(): void {
    this.requests++;
    if (Math.random() < 0.2) this.partition.failSoon();
    try {
      const pick = Math.floor(Math.random() * 7);
      if (pick < 5) this.#change(pick);
      else if (pick === 5) this.discard();
      else {
        this.regions.batch(() => {
          this.#change(Math.floor(Math.random() * 4));
          this.#change(Math.floor(Math.random() * 4));
        });
      }
    } catch (error) {
      const isInjected = error instanceof MappingError && error.cause instanceof Error && error.cause.message === FLAKY;
      // Somebody holds a lock there.
      if (!isInjected && !(error instanceof MemoryLockedError)) throw error;
    }
  }

  #change(which: number): void {
    const overlay = this.#overlay;
    switch (which) {
      case 0:
        return overlay.mapParams === null ? overlay.map() : overlay.unmap();
      case 1:
        return overlay.map({ writable: overlay.mapParams?.writable !== true });
      case 2: {
        // A hole, or memory where there may be one: its own, or another's.
        const at = this.somewhere(HOLES.start, HOLES.end) & -PAGE;
        const rangeInRegion = range(at - DATA_AT, Math.min(HOLES.end, at + PAGE * 4) - DATA_AT);
        if (Math.random() < 0.5) return this.#main.removeMappings(rangeInRegion);
        const own = Math.random() < 0.7;
        return this.#main.addMapping({
          ...{ rangeInRegion, mappable: own ? this.ram : this.#other },
          fileOffset: own ? at : at % 0x40_0000,
        });
      }
      case 3:
        return this.swap();
      default: {
        const start = PLACES[Math.floor(Math.random() * PLACES.length)]!;
        const old = this.#mover;
        this.#mover = this.regions.batch(() => {
          old[Symbol.dispose]();
          const next = this.regions.newRegion({ name: "mover", range: range(start, start + MOVER), priority: 7 });
          next.addMapping({
            rangeInRegion: range(0, MOVER),
            mappable: this.#other,
            fileOffset: PLACES[0]! % 0x40_0000,
          });
          next.map();
          return next;
        });
      }
    }
  }

  /** Takes memory away beside what the guest writes, and gives it back. */
  punch(rangeInRegion: MemoryRange): void {
    this.#main.removeMappings(rangeInRegion);
    this.#main.addMapping({ rangeInRegion, mappable: this.ram, fileOffset: rangeInRegion.start + DATA_AT });
  }

  /** Gives pages back to the host, which read as zeros then. */
  discard(): void {
    const at = this.somewhere(0x70_0000, END) & -PAGE;
    internalsOf(this.regions).discard(range(at, Math.min(END, at + 4 * PAGE)));
  }

  /** Shows other memory in some place. */
  swap(): void {
    const fileOffset = 0x30_0000 + Math.floor(Math.random() * 8) * PAGE;
    this.#main.addMapping({ rangeInRegion: range(0x20_0000, 0x20_4000), mappable: this.#other, fileOffset });
  }

  /** Writes through a lock that is held all the while. */
  writeThroughLock(): void {
    this.#held ??= this.regions.memory.lock(range(HOLES.start, HOLES.start + 4 * PAGE), { write: true });
    if (this.#locks.length === 0) this.#locks.push(this.#held);
    this.#held.bytes[Math.floor(Math.random() * 4 * PAGE)]! += 1;
  }

  /** Copies the machine, `turn` being called again and again meanwhile, and says which pages differ in the end. */
  async move(turn: () => void, tracker?: DirtyTracker): Promise<{ differences: number[]; copied: number }> {
    using own = tracker ?? this.regions.trackDirty();
    const second = new SecondMemory(this.regions.memory);
    using held = new DisposableStack();
    let copied = 0;
    const rounds = await preCopy(own, {
      everything: PageSet.of([range(0, END)]),
      copy: (part) => {
        copied += part.length / PAGE;
        second.copy(part);
      },
      enough: 0,
      rounds: 3,
      pause: async ({ isLast }) => {
        if (isLast) return;
        turn();
        await new Promise((resolve) => setTimeout(resolve, 0));
        turn();
      },
      stop: () => {
        held.use(this.guest.pause());
        if (this.worker !== undefined) {
          this.worker.pause();
          held.defer(() => this.worker?.resume());
        }
      },
    });
    assertEquals(rounds.at(-1)?.isLast, true);
    return { differences: second.differences(), copied };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.releaseLocks();
    await this.guest.stop();
    this.worker?.[Symbol.dispose]();
    await this.#stack.disposeAsync();
  }
}
