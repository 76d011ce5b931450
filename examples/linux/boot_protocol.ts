/**
 * Linux's 64-bit boot protocol: what is in memory, and in the registers of the first processor, when a kernel begins.
 *
 * Described in the kernel's Documentation/arch/x86/boot.rst and zero-page.rst.
 *
 * @module
 */

import type { GuestMemory } from "membacking";
import type { KvmRegs, KvmSegment, KvmSregs } from "membacking/kvm";
import type { Executable } from "./elf.ts";
import { SETUP_HEADER } from "./kernel_image.ts";
import type { MemoryKind } from "./memory.ts";

/** Where things are put, all in the lowest RAM. */
const PLACE = {
  gdt: 0x500,
  parameters: 0x7000,
  pml4: 0x9000,
  pdpt: 0xa000,
  pd: 0xb000,
  commandLine: 0x2_0000,
} as const;

/** Fields of the parameters ("zero page"). */
const PARAMETER = {
  rsdp: 0x70,
  memoryCount: 0x1e8,
  loader: 0x210,
  initrd: 0x218,
  initrdLength: 0x21c,
  commandLine: 0x228,
  memory: 0x2d0,
} as const;
const MOST_MEMORY = 128;
const UNKNOWN_LOADER = 0xff;

const PAGE_PRESENT_WRITABLE = 3;
const PAGE_LARGE = 0x80;
const LARGE_PAGE = 0x20_0000;

/** What a kernel is started with. */
export interface BootOptions {
  /** The kernel. */
  readonly kernel: Executable;
  /** The header of its file. */
  readonly header: Uint8Array;
  /** Its first file system. */
  readonly initramfs: Uint8Array;
  /** Where the RAM ends in which the file system is to be, in bytes. */
  readonly ramEnd: number;
  /** What the kernel is told to do. */
  readonly commandLine: string;
  /** The memory map. */
  readonly memory: readonly MemoryKind[];
  /** Where the ACPI tables begin. */
  readonly rsdp: number;
}

/** Puts everything into memory and returns the registers to begin with; all others are 0. */
export function loadLinux(
  guest: GuestMemory,
  options: BootOptions,
): { regs: Partial<KvmRegs>; sregs: Partial<KvmSregs> } {
  const { kernel, header, initramfs, ramEnd, commandLine, memory, rsdp } = options;
  for (const { gpa, bytes, length } of kernel.segments) {
    guest.write(gpa, bytes);
    guest.fill(gpa + bytes.length, length - bytes.length, 0);
  }
  const initrd = Math.floor((ramEnd - initramfs.length) / 0x1000) * 0x1000;
  guest.write(initrd, initramfs);
  guest.write(PLACE.commandLine, new TextEncoder().encode(`${commandLine}\0`));

  const parameters = new DataView(new ArrayBuffer(0x1000));
  new Uint8Array(parameters.buffer).set(header, SETUP_HEADER);
  parameters.setBigUint64(PARAMETER.rsdp, BigInt(rsdp), true);
  parameters.setUint8(PARAMETER.loader, UNKNOWN_LOADER);
  parameters.setUint32(PARAMETER.initrd, initrd, true);
  parameters.setUint32(PARAMETER.initrdLength, initramfs.length, true);
  parameters.setUint32(PARAMETER.commandLine, PLACE.commandLine, true);
  if (memory.length > MOST_MEMORY) throw new RangeError(`A kernel is told of ${MOST_MEMORY} ranges of memory at most`);
  parameters.setUint8(PARAMETER.memoryCount, memory.length);
  memory.forEach(({ range, kind }, i) => {
    const at = PARAMETER.memory + 20 * i;
    parameters.setBigUint64(at, BigInt(range.start), true);
    parameters.setBigUint64(at + 8, BigInt(range.length), true);
    parameters.setUint32(at + 16, kind, true);
  });
  guest.write(PLACE.parameters, new Uint8Array(parameters.buffer));
  return { regs: { rip: BigInt(kernel.entry), rsi: BigInt(PLACE.parameters), rflags: 2n }, sregs: longMode(guest) };
}

/** 64-bit mode with the first GiB mapped as it is. */
function longMode(guest: GuestMemory): Partial<KvmSregs> {
  guest.writeBigUint64(PLACE.pml4, BigInt(PLACE.pdpt | PAGE_PRESENT_WRITABLE));
  guest.writeBigUint64(PLACE.pdpt, BigInt(PLACE.pd | PAGE_PRESENT_WRITABLE));
  for (let i = 0; i < 512; i++) {
    guest.writeBigUint64(PLACE.pd + 8 * i, BigInt(i * LARGE_PAGE + (PAGE_LARGE | PAGE_PRESENT_WRITABLE)));
  }
  const flat = { base: 0n, limit: 0xffff_ffff, present: 1, dpl: 0, s: 1, g: 1, avl: 0, unusable: 0 };
  const code: KvmSegment = { ...flat, selector: 0x10, type: 0xb, db: 0, l: 1 };
  const data: KvmSegment = { ...flat, selector: 0x18, type: 0x3, db: 1, l: 0 };
  // The selectors have to be in a table too, since the kernel loads some of them before it has its own.
  for (const [i, descriptor] of [0n, 0n, 0x00af_9b00_0000_ffffn, 0x00cf_9300_0000_ffffn].entries()) {
    guest.writeBigUint64(PLACE.gdt + 8 * i, descriptor);
  }
  return {
    ...{ cs: code, ds: data, es: data, fs: data, gs: data, ss: data },
    gdt: { base: BigInt(PLACE.gdt), limit: 31 },
    cr0: 0x8000_0011n, // PG, ET, PE
    cr3: BigInt(PLACE.pml4),
    cr4: 0x20n, // PAE
    efer: 0x500n, // LMA, LME
  };
}
