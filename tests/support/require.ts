/**
 * Tests that need something of the host. Where it is missing, the test shows as ignored, with the reason in its name,
 * and never as passed.
 *
 * @module
 */

import { Kvm, KvmCap } from "membacking/kvm";
import { readProc, writeProc } from "./proc.ts";

type Body = (t: Deno.TestContext) => void | Promise<void>;

/** Registers a test that runs only if `missing` is undefined; otherwise that is the reason. */
export function testUnless(missing: string | undefined, name: string, fn: Body): void {
  if (missing === undefined) Deno.test({ name, fn });
  else Deno.test({ name: `${name} [ignored: ${missing}]`, ignore: true, fn });
}

/** Why `program`, which is to be had from `source`, cannot be run here, or what it says of itself when asked by `ask`. */
export function askProgram(
  program: string,
  source: string,
  ask = "--version",
): { readonly missing: string } | { readonly missing: undefined; readonly said: string } {
  try {
    const { stdout } = new Deno.Command(program, { args: [ask], stderr: "null" }).outputSync();
    return { missing: undefined, said: new TextDecoder().decode(stdout) };
  } catch {
    return { missing: `${program} is not installed (${source})` };
  }
}

const kvmFailure = reasonFrom(() => {
  using kvm = Kvm.open();
  using _vm = kvm.createVm();
});

/** Why KVM cannot be used here, and where it can. */
export const noKvm: string | undefined = kvmFailure === undefined
  ? undefined
  : `${kvmFailure}; "deno task nested -- deno test -A --no-check FILE" has a KVM of its own`;

/** Registers a test that needs KVM, and the capability `cap` of it if one is named. */
export function kvmTest(name: string, fn: Body, cap?: keyof typeof KvmCap): void {
  testUnless(noKvm ?? (cap === undefined ? undefined : lacking(cap)), name, fn);
}

function lacking(cap: keyof typeof KvmCap): string | undefined {
  using kvm = Kvm.open();
  return kvm.checkExtension(KvmCap[cap]) > 0 ? undefined : `this KVM has no KVM_CAP_${cap}`;
}

/** Whether the processor is one that QEMU emulates, as where the second KVM is: ten to fifty times slower than others. */
export const isEmulated: boolean = /^model name\s*: QEMU (Virtual|TCG) CPU/m.test(readProc("/proc/cpuinfo"));

/** By how much what goes by time has to wait longer here. */
export const SLOWNESS: number = isEmulated ? 10 : 1;

/** Why a test that asks how much is done in some seconds says nothing here. */
export const tooSlow: string | undefined = isEmulated
  ? "the processor is emulated, and what this does in its time says nothing"
  : undefined;

/** The size of the huge pages that tests use, in bytes. */
export const HUGE_PAGE = 2 ** 21;

const POOL = "/proc/sys/vm/nr_hugepages";

/** Why huge pages cannot be used here. */
export const noHugePages: string | undefined = reasonFrom(() => {
  using _pool = moreHugePages(1);
});

/** Puts `count` huge pages into the pool, until disposed. */
export function moreHugePages(count: number): Disposable {
  const add = (change: number): number => {
    const before = Number(readProc(POOL));
    writeProc(POOL, String(Math.max(0, before + change)));
    return Number(readProc(POOL)) - before;
  };
  const added = add(count);
  if (added < count) {
    add(-added);
    throw new Error("the host has no memory for huge pages");
  }
  return { [Symbol.dispose]: () => void add(-added) };
}

/** Registers a test that needs `count` huge pages in the pool. */
export function hugePageTest(name: string, count: number, fn: Body): void {
  testUnless(noHugePages, name, async (t) => {
    using _pool = moreHugePages(count);
    await fn(t);
  });
}

function reasonFrom(attempt: () => void): string | undefined {
  try {
    attempt();
    return undefined;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}
