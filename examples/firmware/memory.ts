/**
 * The memory of the machine: RAM, the VGA window, the firmware's ROM in both its places, shadow RAM over the lower one,
 * and the windows of the card.
 *
 * @module
 */

import {
  type DeviceMemory,
  GuestMemoryManager,
  Mappable,
  MemoryRange,
  type Partition,
  type Quiesce,
  type RegionHandle,
} from "membacking";
import { CARD_MEMORY_LENGTH, REGISTERS_LENGTH } from "./card.ts";
import type { MemoryRequests } from "./memory_requests.ts";
import { PAM_RANGES, type PamChange, type Visibility } from "./pam.ts";
import { type SlotChanges, SlotLog } from "./slot_log.ts";

const MIB = 0x10_0000;
const FOUR_GIB = 0x1_0000_0000;
const VGA_WINDOW = new MemoryRange(0xa_0000, 0xc_0000);
const SHADOW = new MemoryRange(0xc_0000, MIB);
/** What of the ROM, its end, is also below 1 MiB. */
const LEGACY_ROM = new MemoryRange(0xe_0000, MIB);

/** The addresses at which cards can be: above RAM, below the interrupt controllers. */
const BUS_END = 0xfec0_0000;

/** Among other regions than RAM, which has 255, and device memory, which has 0. */
const ROM_PRIORITY = 1;
const SHADOW_PRIORITY = 2;

/** What a request did. */
export interface MemoryChange {
  /** Why: what the guest did. */
  readonly cause: string;
  /** What is different now. */
  readonly effects: readonly string[];
  /** The memory slots that went and came. */
  readonly slots: SlotChanges;
  /** How long it took, in microseconds. */
  readonly micros: number;
}

/** How the memory is made. */
export interface MachineMemoryOptions {
  /** The RAM below 4 GiB, in bytes. */
  readonly ram: number;
  /** The file that is the ROM. */
  readonly rom: Mappable;
  /** Keeps the vCPU out of the guest while memory changes. */
  readonly quiesce: Quiesce;
  /** Is told of each change. */
  readonly onChange: (change: MemoryChange) => void;
}

/** A part of shadow RAM that is all the same. */
interface ShadowRun {
  readonly range: MemoryRange;
  readonly to: Visibility;
}

/** The memory of the machine. */
export class MachineMemory implements MemoryRequests, Disposable {
  /** Everything there is, for the devices' side of it too. */
  readonly guest: GuestMemoryManager;
  /** The addresses at which cards can be. */
  readonly bus: MemoryRange;
  /** What backs the card's memory. */
  readonly cardMemory: Mappable;
  readonly #shadowFile: Mappable;
  readonly #windows: readonly DeviceMemory[];
  readonly #onChange: (change: MemoryChange) => void;
  readonly #resources: DisposableStack;
  #slots: SlotLog | undefined;
  #visibility = new Map<number, Visibility>();
  #shadow: readonly RegionHandle[] = [];

  /** Lays everything out as it is at power-on. */
  constructor({ ram, rom, quiesce, onChange }: MachineMemoryOptions) {
    using stack = new DisposableStack();
    this.#onChange = onChange;
    this.bus = new MemoryRange(ram, BUS_END);
    this.#shadowFile = stack.use(Mappable.memfd("shadow", SHADOW.length));
    this.cardMemory = stack.use(Mappable.memfd("card", CARD_MEMORY_LENGTH));
    this.guest = stack.use(GuestMemoryManager.create({
      maxAddress: FOUR_GIB,
      ram: [{ ranges: [new MemoryRange(0, VGA_WINDOW.start), new MemoryRange(MIB, ram)] }],
      overlap: "any", // shadow RAM covers parts of the ROM
      quiesce,
    }));
    const { regions } = this.guest;
    // No screen: a region without mappings says that these addresses are taken, and leaves them to the VMM.
    regions.newRegion({ name: "VGA window", range: VGA_WINDOW, priority: 0, type: "device" }).map();
    for (const range of [LEGACY_ROM, new MemoryRange(FOUR_GIB - rom.size, FOUR_GIB)]) {
      const region = regions.newRegion({ name: "ROM", range, priority: ROM_PRIORITY });
      region.addMapping({
        rangeInRegion: MemoryRange.of(0, range.length),
        mappable: rom,
        fileOffset: rom.size - range.length,
        writable: false,
      });
      region.map({ writable: false });
    }
    this.#windows = [
      this.guest.newDeviceMemory("card registers", REGISTERS_LENGTH), // nothing is mapped: each access is an exit
      this.guest.newDeviceMemory("card memory", CARD_MEMORY_LENGTH),
    ];
    this.#windows[1]?.map(0, this.cardMemory, 0, CARD_MEMORY_LENGTH, true);
    this.#resources = stack.move();
  }

  /** Gives the memory to a virtual machine, once. */
  attach(partition: Partition): void {
    this.#slots = new SlotLog(partition);
    this.#change("power-on", [], () => this.guest.attachPartition(this.#slots ?? partition));
  }

  /**
   * Shadow RAM is a region for each run of PAM ranges that are the same. All go and come anew with every change: what
   * is the same before and after costs nothing, because all of it is one request.
   */
  setVisibility(changes: readonly PamChange[], cause: string): void {
    const visibility = new Map(this.#visibility);
    for (const { range, to } of changes) visibility.set(range.start, to);
    this.#change(cause, runs(changes).map(describe), () => {
      this.#shadow = this.guest.regions.batch(() => {
        for (const region of this.#shadow) region[Symbol.dispose]();
        const now = PAM_RANGES.map((range) => ({ range, to: visibility.get(range.start) ?? "unmapped" as const }));
        return runs(now).filter(({ to }) => to !== "unmapped").map((run) => this.#shadowRegion(run));
      });
      this.#visibility = visibility;
    });
  }

  /** Moves one of the card's windows. */
  placeBar(bar: number, gpa: number | null, cause: string): void {
    const window = this.#windows[bar];
    if (window === undefined) throw new RangeError(`The card has no BAR ${bar}`);
    const effect = gpa === null ? `${window.name} gone` : `${window.name} at 0x${gpa.toString(16)}`;
    this.#change(cause, [effect], () => gpa === null ? window.unmapFromGuest() : window.mapToGuest(gpa, true));
  }

  /** Takes everything away from the virtual machine and gives it back to the host. */
  [Symbol.dispose](): void {
    this.#resources[Symbol.dispose]();
  }

  #shadowRegion({ range, to }: ShadowRun): RegionHandle {
    const region = this.guest.regions.newRegion({ name: "shadow RAM", range, priority: SHADOW_PRIORITY });
    region.addMapping({
      rangeInRegion: MemoryRange.of(0, range.length),
      mappable: this.#shadowFile,
      fileOffset: range.start - SHADOW.start,
    });
    region.map({ writable: to === "read-write" });
    return region;
  }

  #change(cause: string, effects: readonly string[], request: () => void): void {
    const start = performance.now();
    request();
    const micros = (performance.now() - start) * 1000;
    this.#onChange({ cause, effects, slots: this.#slots?.take() ?? { made: [], deleted: [], micros: 0 }, micros });
  }
}

/** Joins neighbours that are the same. */
function runs(ranges: readonly ShadowRun[]): ShadowRun[] {
  const joined: ShadowRun[] = [];
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

function describe({ range, to }: ShadowRun): string {
  return `${range} ${to === "unmapped" ? "no RAM" : to === "read-only" ? "RAM, read-only" : "RAM"}`;
}
