// What the C compiler says about the kernel's headers, against what this package has written down.

import { assertEquals, assertGreater } from "@std/assert";
import * as mman from "../../ffi/os/mman.ts";
import { STATFS, STATX } from "../../ffi/files/open_file.ts";
import * as constants from "../../ffi/kvm/constants.ts";
import { REQUEST } from "../../ffi/kvm/ioctl.ts";
import { SIGACTION } from "../../ffi/kvm/kick_signal.ts";
import * as layout from "../../ffi/kvm/layout.ts";
import { testUnless } from "../support/require.ts";

/** A C expression and the number it should have; `guard` is a macro that headers may be too old for. */
interface Claim {
  readonly expression: string;
  readonly value: number;
  readonly guard?: string;
}

// Name here -> name in C; the union members of kvm_run that have no name of their own follow from the prefix.
const STRUCTS: Readonly<Record<string, readonly [string, Readonly<Record<string, number>>]>> = {
  MEMORY_REGION: ["kvm_userspace_memory_region", layout.MEMORY_REGION],
  REGS: ["kvm_regs", layout.REGS],
  SEGMENT: ["kvm_segment", layout.SEGMENT],
  DTABLE: ["kvm_dtable", layout.DTABLE],
  SREGS: ["kvm_sregs", layout.SREGS],
  FPU: ["kvm_fpu", layout.FPU],
  MSRS: ["kvm_msrs", layout.MSRS],
  MSR_ENTRY: ["kvm_msr_entry", layout.MSR_ENTRY],
  CPUID2: ["kvm_cpuid2", layout.CPUID2],
  CPUID_ENTRY2: ["kvm_cpuid_entry2", layout.CPUID_ENTRY2],
  IRQ_LEVEL: ["kvm_irq_level", layout.IRQ_LEVEL],
  IRQFD: ["kvm_irqfd", layout.IRQFD],
  IOEVENTFD: ["kvm_ioeventfd", layout.IOEVENTFD],
  PIT_CONFIG: ["kvm_pit_config", layout.PIT_CONFIG],
  ENABLE_CAP: ["kvm_enable_cap", layout.ENABLE_CAP],
  DIRTY_LOG: ["kvm_dirty_log", layout.DIRTY_LOG],
  CLEAR_DIRTY_LOG: ["kvm_clear_dirty_log", layout.CLEAR_DIRTY_LOG],
  DIRTY_GFN: ["kvm_dirty_gfn", layout.DIRTY_GFN],
  MP_STATE: ["kvm_mp_state", layout.MP_STATE],
  INTERRUPT: ["kvm_interrupt", layout.INTERRUPT],
  RUN: ["kvm_run", layout.RUN],
  MSR_LIST: ["kvm_msr_list", layout.MSR_LIST],
  SREGS2: ["kvm_sregs2", layout.SREGS2],
  XSAVE: ["kvm_xsave", layout.XSAVE],
  XCRS: ["kvm_xcrs", layout.XCRS],
  LAPIC_STATE: ["kvm_lapic_state", layout.LAPIC_STATE],
  VCPU_EVENTS: ["kvm_vcpu_events", layout.VCPU_EVENTS],
  DEBUGREGS: ["kvm_debugregs", layout.DEBUGREGS],
  IRQCHIP: ["kvm_irqchip", layout.IRQCHIP],
  PIT_STATE2: ["kvm_pit_state2", layout.PIT_STATE2],
  CLOCK_DATA: ["kvm_clock_data", layout.CLOCK_DATA],
  STATX: ["statx", STATX],
  STATFS: ["statfs", STATFS],
  SIGACTION: ["sigaction", SIGACTION],
};

const RUN_UNION = /^(hw|fail_entry|io|mmio|internal|system_event|memory_fault)_/;

function structClaims(): Claim[] {
  return Object.values(STRUCTS).flatMap(([name, fields]) =>
    Object.entries(fields).map(([field, value]): Claim => {
      if (field === "size") return { expression: `sizeof(struct ${name})`, value };
      const path = name === "kvm_run" ? field.replace(RUN_UNION, "$1.") : field;
      const offset = { expression: `offsetof(struct ${name}, ${path})`, value };
      if (path.startsWith("memory_fault.")) return { ...offset, guard: "KVM_EXIT_MEMORY_FAULT" };
      return path.startsWith("system_event.ndata") || path.startsWith("system_event.data")
        ? { ...offset, guard: "KVM_CAP_SYSTEM_EVENT_DATA" }
        : offset;
    })
  );
}

function macroClaims(names: Readonly<Record<string, unknown>>, prefix = ""): Claim[] {
  return Object.entries(names).flatMap(([name, value]) =>
    typeof value === "number" || (typeof value === "bigint" && !name.startsWith("SYS_"))
      ? [{ expression: prefix + name, value: Number(value), guard: prefix + name }]
      : []
  );
}

function claims(): Claim[] {
  const systemCalls = Object.entries(mman).flatMap(([name, value]): Claim[] =>
    typeof value === "bigint" && name.startsWith("SYS_")
      ? [{ expression: `__NR_${name.slice(4).toLowerCase()}`, value: Number(value) }]
      : []
  );
  return [
    ...structClaims(),
    ...systemCalls,
    ...macroClaims(REQUEST),
    ...macroClaims(constants.KvmCap, "KVM_CAP_"),
    ...macroClaims(constants.KvmExitReason, "KVM_EXIT_"),
    ...macroClaims(constants.KvmMpState, "KVM_MP_STATE_"),
    ...macroClaims(constants.KvmCpuidFlag, "KVM_CPUID_FLAG_"),
    ...macroClaims(constants),
    ...macroClaims(mman),
  ];
}

function probe(claims: readonly Claim[]): string {
  const lines = claims.map(({ expression, guard }, i) => {
    const print = `printf("${i} %llu\\n", (unsigned long long)(${expression}));`;
    return guard === undefined ? print : `#ifdef ${guard}\n${print}\n#endif`;
  });
  return `
    #define _GNU_SOURCE
    #include <stddef.h>
    #include <stdio.h>
    #include <fcntl.h>
    #include <signal.h>
    #include <sys/mman.h>
    #include <sys/prctl.h>
    #include <sys/stat.h>
    #include <sys/statfs.h>
    #include <asm/unistd.h>
    #include <linux/kvm.h>
    #include <linux/memfd.h>
    int main(void) {
    ${lines.join("\n")}
    return 0;
    }
  `;
}

/** Compiles and runs a C program. */
async function runC(source: string): Promise<string> {
  const directory = await Deno.makeTempDir();
  try {
    await Deno.writeTextFile(`${directory}/probe.c`, source);
    const compiled = await new Deno.Command("cc", {
      args: ["-o", `${directory}/probe`, `${directory}/probe.c`],
    }).output();
    const decoder = new TextDecoder();
    if (!compiled.success) throw new Error(decoder.decode(compiled.stderr));
    return decoder.decode((await new Deno.Command(`${directory}/probe`).output()).stdout);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

async function whyNoC(): Promise<string | undefined> {
  try {
    await runC("#include <linux/kvm.h>\nint main(void) { return 0; }\n");
    return undefined;
  } catch (error) {
    return error instanceof Deno.errors.NotFound
      ? "there is no C compiler"
      : "the C compiler does not find <linux/kvm.h>";
  }
}

testUnless(
  await whyNoC(),
  "every request number, struct size, field offset and constant is that of the C headers",
  async () => {
    const ours = claims();
    const theirs = new Map(
      (await runC(probe(ours))).trim().split("\n").map((line) => {
        const [index, value] = line.split(" ");
        return [Number(index), Number(value)] as const;
      }),
    );
    const known = ours.filter((_, i) => theirs.has(i));
    assertEquals(
      known.map(({ expression, value }) => `${expression} = ${value}`),
      ours.flatMap(({ expression }, i) => theirs.has(i) ? [`${expression} = ${theirs.get(i)}`] : []),
    );
    // Whatever the headers' age, most must be there to compare with.
    assertGreater(known.length, 230);
    const unknown = ours.filter((_, i) => !theirs.has(i)).map(({ expression }) => expression);
    if (unknown.length > 0) console.log(`The headers here do not know: ${unknown.join(", ")}`);
  },
);
