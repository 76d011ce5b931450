/**
 * The rows as bare calls of the C library from this very process, every argument converted beforehand: what the manager
 * is compared with. The one file here that reaches past the public names, since that is what it is for.
 *
 * Why it is safe: it changes memory in an address range that it reserved itself, and slots of its own at the end of
 * the VM's slot numbers and of its guest-physical addresses.
 *
 * @module
 */

import type { KvmVm } from "membacking/kvm";
import { reserveAddresses } from "../ffi/os/address_space.ts";
import { KVM_MEM_READONLY, KvmExitReason } from "../ffi/kvm/constants.ts";
import { REQUEST } from "../ffi/kvm/ioctl.ts";
import { MEMORY_REGION, RUN } from "../ffi/kvm/layout.ts";
import { libc } from "../ffi/os/libc.ts";
import {
  F_ADD_SEALS,
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  MAP_ANONYMOUS,
  MAP_FIXED,
  MAP_NORESERVE,
  MAP_PRIVATE,
  MAP_SHARED,
  MFD_ALLOW_SEALING,
  MFD_CLOEXEC,
  PROT_NONE,
  PROT_READ,
  PROT_WRITE,
} from "../ffi/os/mman.ts";
import { hostView, revokeView } from "../ffi/os/view.ts";
import {
  accessAt,
  AT,
  BAR_SIZE,
  COPIES,
  FILE_SIZE,
  KIB,
  MIB,
  OTHER_OFFSET,
  OTHER_PLACE,
  PAGE,
  PAM_SIZE,
  RAM_SIZE,
  REGION,
  REGION_SIZE,
  RESERVED,
} from "./layout.ts";
import { type Bench, type Machine, portLoop } from "./ours.ts";

const { sys, errno } = libc();

const READ_WRITE = PROT_READ | PROT_WRITE;
const FILE = MAP_SHARED | MAP_FIXED;
const RESERVE = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
const HOLE = RESERVE | MAP_FIXED;
const ALIGNMENT = 2 * MIB;

/** Where bare slots begin: guest-physical addresses and slot numbers that no manager here uses. */
const GPA_OFFSET = 2 ** 40;
const FIRST_SLOT = 32_000;

function check(result: number): void {
  if (result === -1) throw new Error(`A system call failed with errno ${errno[0]}`);
}

/** One address range for all bare rows. */
let reserved: number | undefined;
function hva(gpa: number): number {
  reserved ??= reserveAddresses(RESERVED, ALIGNMENT);
  return reserved + gpa;
}

/** The calls of a row on a part of guest memory, their arguments ready. */
class Part {
  readonly #address: bigint;
  readonly #size: bigint;
  readonly #fd: number;

  constructor(machine: Machine, gpa: number, size: number) {
    this.#address = BigInt(hva(gpa));
    this.#size = BigInt(size);
    this.#fd = machine.file.fd;
  }

  map(offset: bigint): void {
    check(sys.mmap(this.#address, this.#size, READ_WRITE, FILE, this.#fd, offset));
  }

  giveBack(): void {
    check(sys.mmap(this.#address, this.#size, PROT_NONE, HOLE, -1, 0n));
  }

  protect(prot: number): void {
    check(sys.mprotect(this.#address, this.#size, prot));
  }
}

/** `struct kvm_userspace_memory_region`. */
function slotStruct(gpa: number, size: number, slot: number, flags: number, host: number): Uint32Array<ArrayBuffer> {
  const words = new Uint32Array(MEMORY_REGION.size / 4);
  const view = new DataView(words.buffer);
  view.setUint32(MEMORY_REGION.slot, slot, true);
  view.setUint32(MEMORY_REGION.flags, flags, true);
  view.setBigUint64(MEMORY_REGION.guest_phys_addr, BigInt(gpa), true);
  view.setBigUint64(MEMORY_REGION.memory_size, BigInt(size), true);
  view.setBigUint64(MEMORY_REGION.userspace_addr, BigInt(host), true);
  return words;
}

/** A slot over a part of guest memory, its structs ready. */
class Slot {
  readonly #fd: number;
  readonly #add: Uint32Array<ArrayBuffer>;
  readonly #addReadOnly: Uint32Array<ArrayBuffer>;
  readonly #delete: Uint32Array<ArrayBuffer>;

  constructor(machine: Machine, gpa: number, size: number, index = 0, host = hva(gpa)) {
    this.#fd = machine.vm?.fd ?? -1;
    const struct = (flags: number, length: number) =>
      slotStruct(gpa + GPA_OFFSET, length, FIRST_SLOT + index, flags, host);
    this.#add = struct(0, size);
    this.#addReadOnly = struct(KVM_MEM_READONLY, size);
    this.#delete = struct(0, 0);
  }

  add(): void {
    this.#set(this.#add);
  }

  addReadOnly(): void {
    this.#set(this.#addReadOnly);
  }

  delete(): void {
    this.#set(this.#delete);
  }

  #set(struct: Uint32Array<ArrayBuffer>): void {
    check(sys.ioctl(this.#fd, REQUEST.KVM_SET_USER_MEMORY_REGION, struct));
  }
}

function bench(run: (count: number) => void, end: () => void = () => {}): Bench {
  return { run, [Symbol.dispose]: end };
}

function window(machine: Machine, size: number): Bench {
  const part = new Part(machine, AT, size);
  const slot = new Slot(machine, REGION, REGION_SIZE);
  if (machine.vm !== null) slot.add();
  return bench((count) => {
    for (let i = 0; i < count; i++) {
      part.map(0n);
      part.giveBack();
    }
  }, () => {
    if (machine.vm !== null) slot.delete();
  });
}

function withSlot(machine: Machine, size: number): Bench {
  const part = new Part(machine, AT, size);
  const slot = new Slot(machine, AT, size);
  return bench((count) => {
    for (let i = 0; i < count; i++) {
      part.map(0n);
      slot.add();
      slot.delete();
      part.giveBack();
    }
  });
}

function replace(machine: Machine, size: number): Bench {
  const part = new Part(machine, AT, size);
  const slot = new Slot(machine, AT, size);
  const other = BigInt(OTHER_OFFSET);
  part.map(0n);
  slot.add();
  return bench((count) => {
    for (let i = 0; i < count; i++) {
      part.map(other);
      part.map(0n);
    }
  }, () => {
    slot.delete();
    part.giveBack();
  });
}

function region64(machine: Machine, slots: 1 | 64): Bench {
  const pages = Array.from({ length: 64 }, (_, i) => ({
    part: new Part(machine, REGION + i * PAGE, PAGE),
    offset: BigInt((63 - i) * PAGE),
  }));
  const all = new Part(machine, REGION, 64 * PAGE);
  const size = 64 * PAGE / slots;
  const held = Array.from({ length: slots }, (_, i) => new Slot(machine, REGION + i * size, size, i));
  return bench((count) => {
    for (let i = 0; i < count; i++) {
      for (const { part, offset } of pages) part.map(offset);
      for (const slot of held) slot.add();
      for (const slot of held) slot.delete();
      all.giveBack();
    }
  });
}

/** Moves the only mapping of a BAR, with its slot, to another address and back. */
function barMove(machine: Machine): Bench {
  const places = [AT, OTHER_PLACE].map((gpa, i) => ({
    part: new Part(machine, gpa, BAR_SIZE),
    slot: new Slot(machine, gpa, BAR_SIZE, i),
  }));
  const [first, second] = places;
  if (first === undefined || second === undefined) throw new Error("There are two");
  const move = (from: typeof first, to: typeof first) => {
    from.slot.delete();
    to.part.map(0n);
    from.part.giveBack();
    to.slot.add();
  };
  first.part.map(0n);
  first.slot.add();
  return bench((count) => {
    for (let i = 0; i < count; i++) {
      move(first, second);
      move(second, first);
    }
  }, () => {
    first.slot.delete();
    first.part.giveBack();
  });
}

function readOnly(machine: Machine, size: number): Bench {
  const part = new Part(machine, AT, size);
  const slot = new Slot(machine, AT, size);
  part.map(0n);
  slot.add();
  return bench((count) => {
    for (let i = 0; i < count; i++) {
      slot.delete();
      part.protect(PROT_READ);
      slot.addReadOnly();
      slot.delete();
      part.protect(READ_WRITE);
      slot.add();
    }
  }, () => {
    slot.delete();
    part.giveBack();
  });
}

function ram(machine: Machine): Bench {
  const name = new TextEncoder().encode("bare\0");
  const size = BigInt(RAM_SIZE);
  const total = BigInt(RAM_SIZE + ALIGNMENT - PAGE);
  const alignment = BigInt(ALIGNMENT);
  return bench((count) => {
    for (let i = 0; i < count; i++) {
      const from = sys.mmapFresh(0n, total, PROT_NONE, RESERVE, -1, 0n);
      const start = (from + alignment - 1n) / alignment * alignment;
      if (start > from) check(sys.munmap(from, start - from));
      if (from + total > start + size) check(sys.munmap(start + size, from + total - start - size));
      const fd = sys.memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
      check(sys.ftruncate(fd, size));
      check(sys.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
      check(sys.mmap(start, size, READ_WRITE, FILE, fd, 0n));
      const slot = new Slot(machine, RESERVED, RAM_SIZE, 1, Number(start));
      slot.add();
      slot.delete();
      check(sys.munmap(start, size));
      check(sys.close(fd));
    }
  });
}

function access(machine: Machine, direction: "read" | "write", size: number, far: boolean): Bench {
  const part = new Part(machine, REGION, FILE_SIZE);
  part.map(0n);
  const buffer = hostView(hva(REGION), FILE_SIZE);
  new Uint8Array(buffer).fill(1);
  const view = new DataView(buffer);
  const places = far ? FILE_SIZE / size : 16;
  const windows = Array.from({ length: places }, (_, i) => new Uint8Array(buffer, accessAt(i, size, far), size));
  const bytes = new Uint8Array(size).fill(1);
  let sum = 0;
  const run = (count: number) => {
    if (size === 4 && direction === "read") {
      for (let i = 0; i < count; i++) sum = (sum + view.getUint32(accessAt(i, size, far), true)) | 0;
    } else if (size === 4) {
      for (let i = 0; i < count; i++) view.setUint32(accessAt(i, size, far), i, true);
    } else if (direction === "read") {
      for (let i = 0; i < count; i++) bytes.set(windows[i % places]!);
    } else {
      for (let i = 0; i < count; i++) windows[i % places]!.set(bytes);
    }
  };
  return bench(run, () => {
    revokeView(buffer);
    part.giveBack();
  });
}

/** The least a lock can be: a view, and its end. */
function lock(machine: Machine): Bench {
  const part = new Part(machine, REGION, PAGE);
  part.map(0n);
  const address = hva(REGION);
  return bench((count) => {
    for (let i = 0; i < count; i++) hostView(address, PAGE).transfer(0);
  }, () => part.giveBack());
}

function exits(machine: Machine): Bench {
  const { vcpu, stack } = portLoop(machine);
  const { fd, runSize } = vcpu.share();
  const address = sys.mmapFresh(0n, BigInt(runSize), READ_WRITE, MAP_SHARED, fd, 0n);
  const buffer = hostView(Number(address), runSize);
  const words = new Uint32Array(buffer);
  const [reason, direction] = [RUN.exit_reason / 4, RUN.io_direction / 4];
  return bench((count) => {
    for (let i = 0; i < count; i++) {
      check(sys.ioctlValue(fd, REQUEST.KVM_RUN, 0n));
      // The port is the high half of the word.
      if (words[reason] !== KvmExitReason.IO || words[direction]! >>> 16 !== 0x10) throw new Error("Unexpected exit");
    }
  }, () => {
    revokeView(buffer);
    sys.munmap(address, BigInt(runSize));
    stack[Symbol.dispose]();
  });
}

/** The rows, by name. */
export const BARE: Readonly<Record<string, (machine: Machine) => Bench>> = {
  "window-4k": (machine) => window(machine, 4 * KIB),
  "window-64k": (machine) => window(machine, 64 * KIB),
  "window-2m": (machine) => window(machine, 2 * MIB),
  "slot-4k": (machine) => withSlot(machine, 4 * KIB),
  "slot-64k": (machine) => withSlot(machine, 64 * KIB),
  "slot-2m": (machine) => withSlot(machine, 2 * MIB),
  "replace-4k": (machine) => replace(machine, 4 * KIB),
  "replace-64k": (machine) => replace(machine, 64 * KIB),
  "replace-2m": (machine) => replace(machine, 2 * MIB),
  "switch": (machine) => replace(machine, 2 * MIB),
  "region-1": (machine) => withSlot(machine, PAGE),
  "region-64": (machine) => region64(machine, 64),
  "window-64": (machine) => region64(machine, 1),
  "protect": (machine) => readOnly(machine, 2 * MIB),
  "ram-512m": ram,
  ...Object.fromEntries(
    Object.entries(COPIES).map(([name, how]) => [name, (machine: Machine) => access(machine, ...how)]),
  ),
  "lock": lock,
  "lock-1000": lock,
  "exits": exits,
  "device-64k": (machine) => window(machine, 64 * KIB),
  "vmm-window-64k": (machine) => window(machine, 64 * KIB),
  "vmm-device-64k": (machine) => window(machine, 64 * KIB),
  "vmm-replace-64k": (machine) => replace(machine, 64 * KIB),
  "vmm-switch": (machine) => replace(machine, 2 * MIB),
  "bar-move": barMove,
  "vmm-bar-move": barMove,
  "vmm-bar-move-held": barMove,
  "vmm-pam": (machine) => readOnly(machine, PAM_SIZE),
  "ram-window-64k": (machine) => window(machine, 64 * KIB),
  "ram-replace-64k": (machine) => replace(machine, 64 * KIB),
  "ram-switch": (machine) => replace(machine, 2 * MIB),
};

/**
 * Takes slots away and gives them back, with the memory behind them: those of somebody else's, who sees nothing of it, as
 * everything is as it was afterwards. `base` is the host address of GPA 0, and `offsetOf` where in the file a GPA is.
 */
export function sameSlots(
  vm: KvmVm,
  base: number,
  fd: number,
  gpas: readonly number[],
  offsetOf: (gpa: number) => number,
): () => void {
  const slots = new Map(vm.slots.map((info) => [info.range.start, info]));
  const places = gpas.map((gpa) => {
    const info = slots.get(gpa);
    if (info === undefined) throw new Error(`There is no slot at ${gpa}`);
    const { slot, range: { length } } = info;
    const [address, size, offset] = [BigInt(base + gpa), BigInt(length), BigInt(offsetOf(gpa))];
    const struct = (length: number) => slotStruct(gpa, length, slot, 0, base + gpa);
    return { address, size, offset, add: struct(length), remove: struct(0) };
  });
  const set = (struct: Uint32Array<ArrayBuffer>) => check(sys.ioctl(vm.fd, REQUEST.KVM_SET_USER_MEMORY_REGION, struct));
  return () => {
    for (const { address, size, offset, add, remove } of places) {
      set(remove);
      check(sys.mmap(address, size, PROT_NONE, HOLE, -1, 0n));
      check(sys.mmap(address, size, READ_WRITE, FILE, fd, offset));
      set(add);
    }
  };
}

/** The original's way to switch what a slot shows between two files: slot away, mmap, slot back. */
export function tornSwitch(vm: KvmVm, gpa: number, size: number, first: number, second: number) {
  const host = reserveAddresses(size, ALIGNMENT);
  const [address, length] = [BigInt(host), BigInt(size)];
  const add = slotStruct(gpa, size, FIRST_SLOT, 0, host);
  const remove = slotStruct(gpa, 0, FIRST_SLOT, 0, host);
  let [shown, hidden] = [first, second];
  const map = () => check(sys.mmap(address, length, READ_WRITE, FILE, shown, 0n));
  const set = (struct: Uint32Array<ArrayBuffer>) => check(sys.ioctl(vm.fd, REQUEST.KVM_SET_USER_MEMORY_REGION, struct));
  map();
  set(add);
  return {
    switch(): void {
      [shown, hidden] = [hidden, shown];
      set(remove);
      map();
      set(add);
    },
    [Symbol.dispose](): void {
      set(remove);
      sys.munmap(address, length);
    },
  };
}

/** A system call that does nothing, for strace to see. */
export function mark(): void {
  sys.close(-1000);
}
