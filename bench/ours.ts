/**
 * The rows as a user of the package does them, by its public names.
 *
 * @module
 */

import { GuestMemoryManager, Mappable, MemoryRange, type RegionHandle, RegionManager, VaMapper } from "membacking";
import type { Kvm, KvmVm } from "membacking/kvm";
import {
  accessAt,
  AT,
  BAR_SIZE,
  CODE,
  COPIES,
  FILE_SIZE,
  GUEST_SIZE,
  KIB,
  MIB,
  OTHER_OFFSET,
  OTHER_PLACE,
  PAGE,
  PORT_LOOP,
  RAM_SIZE,
  REGION,
  REGION_SIZE,
  RESERVED,
} from "./layout.ts";
import { startRealMode } from "../examples/guest/mod.ts";

/** What all rows of this process share. */
export interface Machine {
  /** `null` where there is none, and rows without it are all that can be done. */
  readonly kvm: Kvm | null;
  /** The virtual machine whose slots are changed. One for all: each more makes every mmap of the process slower. */
  readonly vm: KvmVm | null;
  /** The file that rows map parts of. */
  readonly file: Mappable;
}

/** A row, ready to be done. */
export interface Bench extends Disposable {
  /** Does it `count` times. */
  run(count: number): void;
}

/** The file of a `Machine`. */
export function newFile(): Mappable {
  return Mappable.memfd("bench", FILE_SIZE);
}

/** Where the regions of a row are made: in a manager of its own, or among what a VMM has. */
export interface Place extends Disposable {
  readonly regions: RegionManager;
  readonly file: Mappable;
  /** A region of the kind that the place is for. */
  region(start: number, length: number, holes?: "exit" | "fault"): RegionHandle;
}

/** A region manager over an address range of its own, with the machine's VM attached. */
class Rig implements Place {
  readonly regions: RegionManager;
  readonly file: Mappable;
  readonly #stack = new DisposableStack();

  constructor(machine: Machine) {
    const va = this.#stack.use(VaMapper.reserve(RESERVED));
    this.file = machine.file;
    this.regions = this.#stack.use(new RegionManager(va));
    if (machine.vm !== null) this.#stack.use(this.regions.addPartition(machine.vm));
  }

  region(start: number, length: number, holes: "exit" | "fault" = "exit"): RegionHandle {
    return this.regions.newRegion({ name: "bench", range: MemoryRange.of(start, length), priority: 0, holes });
  }

  [Symbol.dispose](): void {
    this.#stack[Symbol.dispose]();
  }
}

export function bench(rig: Disposable, run: (count: number) => void): Bench {
  return { run, [Symbol.dispose]: () => rig[Symbol.dispose]() };
}

/** Maps and unmaps `size` bytes in a mapped region. */
export function mapUnmap(rig: Place, size: number, holes: "exit" | "fault"): Bench {
  const region = rig.region(REGION, REGION_SIZE, holes);
  region.map();
  const rangeInRegion = MemoryRange.of(AT - REGION, size);
  const mapping = { rangeInRegion, mappable: rig.file };
  return bench(rig, (count) => {
    for (let i = 0; i < count; i++) {
      region.addMapping(mapping);
      region.removeMappings(rangeInRegion);
    }
  });
}

/** Puts another part of the file in the place of `size` bytes, and the first one back. */
export function replace(rig: Place, size: number): Bench {
  const region = rig.region(REGION, REGION_SIZE);
  region.map();
  const first = { rangeInRegion: MemoryRange.of(AT - REGION, size), mappable: rig.file };
  const other = { ...first, fileOffset: OTHER_OFFSET };
  region.addMapping(first);
  return bench(rig, (count) => {
    for (let i = 0; i < count; i++) {
      region.addMapping(other);
      region.addMapping(first);
    }
  });
}

/** Of two regions on one range the older is shown. Unmapping it shows the other one. */
export function switchRegions(rig: Place): Bench {
  const [older, newer] = [0, OTHER_OFFSET].map((fileOffset) => {
    const region = rig.region(AT, 2 * MIB);
    region.addMapping({ rangeInRegion: MemoryRange.of(0, 2 * MIB), mappable: rig.file, fileOffset });
    region.map();
    return region;
  });
  if (older === undefined || newer === undefined) throw new Error("There are two");
  return bench(rig, (count) => {
    for (let i = 0; i < count; i++) {
      older.unmap();
      older.map();
    }
  });
}

/** Maps and unmaps a region whose `pages` pages lie in the file in reverse order, so that none can be joined. */
export function mapUnmapRegion(rig: Place, at: number, pages: number, holes: "exit" | "fault"): Bench {
  const region = rig.region(at, pages * PAGE, holes);
  for (let i = 0; i < pages; i++) {
    const rangeInRegion = MemoryRange.of(i * PAGE, PAGE);
    region.addMapping({ rangeInRegion, mappable: rig.file, fileOffset: (pages - 1 - i) * PAGE });
  }
  return bench(rig, (count) => {
    for (let i = 0; i < count; i++) {
      region.map();
      region.unmap();
    }
  });
}

export function readOnly(rig: Place): Bench {
  const region = rig.region(AT, 2 * MIB);
  region.addMapping({ rangeInRegion: MemoryRange.of(0, 2 * MIB), mappable: rig.file });
  region.map();
  return bench(rig, (count) => {
    for (let i = 0; i < count; i++) {
      region.map({ writable: false });
      region.map({ writable: true });
    }
  });
}

function ram({ vm }: Machine): Bench {
  const options = { maxAddress: RAM_SIZE, ram: [{ ranges: [MemoryRange.of(0, RAM_SIZE)] }] };
  return bench(new DisposableStack(), (count) => {
    for (let i = 0; i < count; i++) {
      using guest = GuestMemoryManager.create(options);
      if (vm !== null) guest.attachPartition(vm);
    }
  });
}

/** Maps and unmaps 64 KiB of a window by the object that devices have. */
export function deviceWindow(guest: GuestMemoryManager, { file }: Machine): Bench {
  const device = guest.newDeviceMemory("window", REGION_SIZE, { holes: "fault" });
  device.mapToGuest(REGION, true);
  const mapping = { offset: AT - REGION, mappable: file, length: 64 * KIB };
  return bench(device, (count) => {
    for (let i = 0; i < count; i++) {
      device.map(mapping);
      device.unmap(AT - REGION, 64 * KIB);
    }
  });
}

/** Moves a BAR of one mapping to another address, and back. */
export function barMove(guest: GuestMemoryManager, { file }: Machine): Bench {
  const bar = guest.newDeviceMemory("bar", BAR_SIZE);
  bar.map({ offset: 0, mappable: file, length: BAR_SIZE });
  bar.mapToGuest(AT, true);
  return bench(bar, (count) => {
    for (let i = 0; i < count; i++) {
      bar.mapToGuest(OTHER_PLACE, true);
      bar.mapToGuest(AT, true);
    }
  });
}

/** A row in a manager without RAM, which nobody looks at. */
function alone(machine: Machine, row: (guest: GuestMemoryManager, machine: Machine) => Bench): Bench {
  const stack = new DisposableStack();
  const guest = stack.use(GuestMemoryManager.create({ maxAddress: RESERVED, ram: [] }));
  if (machine.vm !== null) stack.use(guest.attachPartition(machine.vm));
  const inner = stack.use(row(guest, machine));
  return bench(stack, inner.run);
}

/** Guest memory that has been touched. */
function touched(machine: Machine): Rig {
  const rig = new Rig(machine);
  const region = rig.region(REGION, FILE_SIZE);
  region.addMapping({ rangeInRegion: MemoryRange.of(0, FILE_SIZE), mappable: machine.file });
  region.map();
  rig.regions.memory.fill(REGION, FILE_SIZE, 1);
  return rig;
}

function access(machine: Machine, direction: "read" | "write", size: number, far: boolean): Bench {
  const rig = touched(machine);
  const { memory } = rig.regions;
  const bytes = new Uint8Array(size).fill(1);
  let sum = 0;
  const run = (count: number) => {
    if (size === 4 && direction === "read") {
      for (let i = 0; i < count; i++) sum = (sum + memory.readUint32(REGION + accessAt(i, size, far))) | 0;
    } else if (size === 4) {
      for (let i = 0; i < count; i++) memory.writeUint32(REGION + accessAt(i, size, far), i);
    } else if (direction === "read") {
      for (let i = 0; i < count; i++) memory.readInto(REGION + accessAt(i, size, far), bytes);
    } else {
      for (let i = 0; i < count; i++) memory.write(REGION + accessAt(i, size, far), bytes);
    }
  };
  return bench(rig, run);
}

function lock(machine: Machine, others: number): Bench {
  const rig = touched(machine);
  const { memory } = rig.regions;
  const locks = Array.from({ length: others }, (_, i) => memory.lock(MemoryRange.of(REGION + i % 256 * PAGE, PAGE)));
  const range = MemoryRange.of(REGION + MIB, PAGE);
  const stack = new DisposableStack();
  stack.use(rig);
  for (const held of locks) stack.use(held);
  return bench(stack, (count) => {
    for (let i = 0; i < count; i++) memory.lock(range, { write: true })[Symbol.dispose]();
  });
}

/** A guest in a VM of its own that leaves again and again. */
export function portLoop({ kvm }: Machine) {
  if (kvm === null) throw new Error("There is no KVM");
  const stack = new DisposableStack();
  const vm = stack.use(kvm.createVm());
  const guest = stack.use(
    GuestMemoryManager.create({ maxAddress: GUEST_SIZE, ram: [{ ranges: [MemoryRange.of(0, GUEST_SIZE)] }] }),
  );
  guest.attachPartition(vm);
  guest.memory.write(CODE, PORT_LOOP);
  const vcpu = stack.use(vm.createVcpu(0));
  startRealMode(vcpu, CODE);
  return { vcpu, stack };
}

function exits(machine: Machine): Bench {
  const { vcpu, stack } = portLoop(machine);
  return bench(stack, (count) => {
    for (let i = 0; i < count; i++) {
      const exit = vcpu.run();
      if (exit.kind !== "io" || exit.port !== 0x10) throw new Error(`Unexpected exit "${exit.kind}"`);
    }
  });
}

/** The rows, by name. */
export const OURS: Readonly<Record<string, (machine: Machine) => Bench>> = {
  "window-4k": (machine) => mapUnmap(new Rig(machine), 4 * KIB, "fault"),
  "window-64k": (machine) => mapUnmap(new Rig(machine), 64 * KIB, "fault"),
  "window-2m": (machine) => mapUnmap(new Rig(machine), 2 * MIB, "fault"),
  "slot-4k": (machine) => mapUnmap(new Rig(machine), 4 * KIB, "exit"),
  "slot-64k": (machine) => mapUnmap(new Rig(machine), 64 * KIB, "exit"),
  "slot-2m": (machine) => mapUnmap(new Rig(machine), 2 * MIB, "exit"),
  "replace-4k": (machine) => replace(new Rig(machine), 4 * KIB),
  "replace-64k": (machine) => replace(new Rig(machine), 64 * KIB),
  "replace-2m": (machine) => replace(new Rig(machine), 2 * MIB),
  "switch": (machine) => switchRegions(new Rig(machine)),
  "region-1": (machine) => mapUnmapRegion(new Rig(machine), AT, 1, "exit"),
  "region-64": (machine) => mapUnmapRegion(new Rig(machine), REGION, 64, "exit"),
  "window-64": (machine) => mapUnmapRegion(new Rig(machine), REGION, 64, "fault"),
  "protect": (machine) => readOnly(new Rig(machine)),
  "ram-512m": ram,
  ...Object.fromEntries(
    Object.entries(COPIES).map(([name, how]) => [name, (machine: Machine) => access(machine, ...how)]),
  ),
  "device-64k": (machine) => alone(machine, deviceWindow),
  "bar-move": (machine) => alone(machine, barMove),
  "lock": (machine) => lock(machine, 0),
  "lock-1000": (machine) => lock(machine, 1000),
  "exits": exits,
};
