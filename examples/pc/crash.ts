/**
 * A vCPU that cannot go on, and what it was doing.
 *
 * @module
 */

import type { KvmExit, KvmRegs, KvmSregs, KvmVcpu } from "membacking/kvm";

/** What the vCPU was doing when it could not go on. */
export interface Crash {
  /** Why it came out of the guest for good. */
  readonly exit: KvmExit;
  /** Its general registers. */
  readonly regs: KvmRegs;
  /** Its special registers. */
  readonly sregs: KvmSregs;
}

/** Everything about it, as a copy: exits are used again. */
export function crashOf(vcpu: KvmVcpu, exit: KvmExit): Crash {
  return { exit: { ...exit }, regs: vcpu.getRegs(), sregs: vcpu.getSregs() };
}

/** The exit that nothing can be done about, and the registers at that moment. */
export function describeCrash({ exit, regs, sregs }: Crash): string[] {
  const { kind, ...rest } = exit;
  const details = Object.entries(rest).filter(([name]) => name !== "data" || kind === "internal-error")
    .map(([name, value]) => `${name} ${hexOf(value)}`);
  const names = Object.keys(regs) as (keyof typeof regs)[];
  const general = names.map((name) => `${name.padEnd(6)} ${hexOf(regs[name]).padEnd(18)}`);
  const rows = Array.from({ length: general.length / 3 }, (_, i) => general.slice(3 * i, 3 * i + 3).join("  "));
  const { cs, ss, cr0, cr2, cr3, cr4, efer } = sregs;
  return [
    `The guest cannot go on: ${[kind, ...details].join(", ")}`,
    ...rows.map((row) => `  ${row.trimEnd()}`),
    `  cs ${hexOf(cs.selector)} at ${hexOf(cs.base)}, ss ${hexOf(ss.selector)} at ${hexOf(ss.base)}`,
    `  cr0 ${hexOf(cr0)}  cr2 ${hexOf(cr2)}  cr3 ${hexOf(cr3)}  cr4 ${hexOf(cr4)}  efer ${hexOf(efer)}`,
    "",
  ];
}

function hexOf(value: unknown): string {
  if (Array.isArray(value)) return value.map(hexOf).join(" ");
  return typeof value === "bigint" || typeof value === "number" ? `0x${value.toString(16)}` : String(value);
}
