/**
 * Guests in real mode: the simplest there are, started with no tables at all.
 *
 * The data segments are made 4 GiB long, so that any 32-bit address can be used.
 *
 * @module
 */

import type { KvmRegs, KvmSegment, KvmVcpu } from "membacking/kvm";

const CR0 = 0x6000_0010n; // CD, NW, ET: what it is after a reset

const STACK: KvmSegment = {
  ...{ base: 0n, limit: 0xffff, selector: 0, type: 0x3, present: 1, dpl: 0 },
  ...{ db: 0, s: 1, l: 0, g: 0, avl: 0, unusable: 0 },
};
const DATA: KvmSegment = { ...STACK, limit: 0xffff_ffff, g: 1 };

const ALL_ZERO: KvmRegs = {
  ...{ rax: 0n, rbx: 0n, rcx: 0n, rdx: 0n, rsi: 0n, rdi: 0n, rsp: 0n, rbp: 0n },
  ...{ r8: 0n, r9: 0n, r10: 0n, r11: 0n, r12: 0n, r13: 0n, r14: 0n, r15: 0n, rip: 0n, rflags: 0n },
};

/** 16-bit code in the making. Values go through AL, AX or EAX. */
export class RealModeCode {
  #code: number[] = [];

  /** Sets EAX. */
  set(value: number): this {
    return this.raw(0x66, 0xb8, ...little(value, 4));
  }

  /** Loads 1, 2 or 4 bytes from a 32-bit address into AL, AX or EAX. */
  load(address: number, size: 1 | 2 | 4): this {
    return this.raw(0x67, ...wide(size), size === 1 ? 0xa0 : 0xa1, ...little(address, 4));
  }

  /** Stores AL, AX or EAX at a 32-bit address. */
  store(address: number, size: 1 | 2 | 4): this {
    return this.raw(0x67, ...wide(size), size === 1 ? 0xa2 : 0xa3, ...little(address, 4));
  }

  /** Writes AL, AX or EAX to a port. Changes DX. */
  out(port: number, size: 1 | 2 | 4): this {
    return this.raw(0xba, ...little(port, 2), ...wide(size), size === 1 ? 0xee : 0xef);
  }

  /** Reads a port into AL, AX or EAX. Changes DX. */
  in(port: number, size: 1 | 2 | 4): this {
    return this.raw(0xba, ...little(port, 2), ...wide(size), size === 1 ? 0xec : 0xed);
  }

  /** Starts again from the first instruction. */
  repeat(): this {
    return this.raw(0xe9, ...little(-(this.#code.length + 3), 2));
  }

  /** Halts. */
  halt(): this {
    return this.raw(0xf4);
  }

  /** Bytes as they are. */
  raw(...bytes: readonly number[]): this {
    this.#code.push(...bytes);
    return this;
  }

  /** The finished code. */
  bytes(): Uint8Array<ArrayBuffer> {
    return new Uint8Array(this.#code);
  }
}

/**
 * Makes a vCPU begin at `gpa` in real mode, with the registers given and all others 0.
 *
 * @param gpa Below 1 MiB, or anywhere below 4 GiB for code that stays within 64 KiB of it.
 */
export function startRealMode(vcpu: KvmVcpu, gpa: number, regs: Partial<KvmRegs> = {}): void {
  const base = gpa - gpa % 0x10;
  const code = { ...STACK, base: BigInt(base), selector: (base >>> 4) & 0xffff, type: 0xb };
  vcpu.setSregs({
    ...{ cs: code, ds: DATA, es: DATA, fs: DATA, gs: DATA, ss: STACK },
    ...{ cr0: CR0, cr3: 0n, cr4: 0n, efer: 0n },
  });
  vcpu.setRegs({ ...ALL_ZERO, rflags: 2n, rip: BigInt(gpa - base), ...regs });
}

function wide(size: 1 | 2 | 4): readonly number[] {
  return size === 4 ? [0x66] : [];
}

function little(value: number, size: number): number[] {
  return Array.from({ length: size }, (_, i) => Math.floor(value / 2 ** (8 * i)) & 0xff);
}
