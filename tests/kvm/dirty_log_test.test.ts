// What the kernel's own dirty_log_test asserts of each page, against this package, while the guest runs natively and writes:
// a page in the log holds the number of this round or of the last one; a page that is not in it holds no later number,
// and if it holds this round's, it is in the log next time.

import { assert, assertEquals, assertLess } from "@std/assert";
import type { CreateVmOptions, KvmCap, KvmVcpu } from "membacking/kvm";
import { VcpuThread } from "../../examples/guest/mod.ts";
import { CODE_AT, LongModeCode, startLongMode, TABLES_AT, TestMachine } from "../support/guest.ts";
import { kvmTest } from "../support/require.ts";
import { PAGE, range } from "../support/units.ts";

/** Where the guest reads the number of the round, in a slot that does not log. */
const ROUND_AT = 0x4_0000;
/** Where each vCPU counts the times it has written 1,024 pages. */
const COUNT_AT = 0x4_1000;
const DATA_AT = 0x40_0000;
/** As in the original; a machine of little memory, such as that of the second KVM, has no room for it. */
const MIB = Deno.systemMemoryInfo().available >= 2 ** 32 ? 1024 : 128;
/** With 3 pages more: odd on purpose. */
const PAGES = MIB * 256 + 3;
const DATA_END = DATA_AT + PAGES * PAGE;
const ROUNDS = 32;

/** Writes the number of the round to all pages once, and from then on to random ones. */
function program(vcpu: number): Uint8Array {
  return new LongModeCode()
    .set("r8", DATA_AT).set("r9", ROUND_AT).set("r10", COUNT_AT + 64 * vcpu)
    .set("rdi", PAGES).set("rbp", 6364136223846793005n).set("r14", 1442695040888963407n).set("r11", 77 + vcpu)
    .set("rbx", PAGES).move("rax", "r8")
    .label("all")
    .load("rcx", "r9", 8).store("rax", "rcx", 8)
    .add("rax", PAGE).subtract("rbx", 1).jumpIf("notEqual", "all")
    .label("again")
    .set("rbx", 1024)
    .label("random")
    .raw(0x4c, 0x0f, 0xaf, 0xdd) // imul r11, rbp
    .addRegister("r11", "r14")
    .move("rax", "r11")
    .raw(0x48, 0xc1, 0xe8, 33) // shr rax, 33
    .raw(0x48, 0x0f, 0xaf, 0xc7) // imul rax, rdi
    .raw(0x48, 0xc1, 0xe8, 31) // shr rax, 31
    .raw(0x48, 0xc1, 0xe0, 12) // shl rax, 12
    .addRegister("rax", "r8")
    .load("rcx", "r9", 8).store("rax", "rcx", 8)
    .subtract("rbx", 1).jumpIf("notEqual", "random")
    .load("rcx", "r10", 8).add("rcx", 1).store("r10", "rcx", 8)
    .jump("again")
    .bytes();
}

interface Mode {
  readonly name: string;
  readonly cap: keyof typeof KvmCap;
  readonly vm: CreateVmOptions;
  readonly vcpus: number;
  /** Whether the log is switched on beside the running guest, and not before it begins. */
  readonly late?: boolean;
}

const MODES: readonly Mode[] = [
  { name: "bitmap", cap: "MANUAL_DIRTY_LOG_PROTECT2", vm: {}, vcpus: 1 },
  { name: "bitmap, 2 vCPUs", cap: "MANUAL_DIRTY_LOG_PROTECT2", vm: {}, vcpus: 2 },
  {
    name: "bitmap that is switched on beside the guest",
    cap: "MANUAL_DIRTY_LOG_PROTECT2",
    vm: {},
    vcpus: 1,
    late: true,
  },
  { name: "ring", cap: "DIRTY_LOG_RING", vm: { dirtyLog: "ring" }, vcpus: 1 },
  { name: "ring, 2 vCPUs", cap: "DIRTY_LOG_RING", vm: { dirtyLog: "ring" }, vcpus: 2 },
];

for (const { name, cap, vm, vcpus: count, late = false } of MODES) {
  kvmTest(`Dirty log of ${MIB} MiB and 3 pages: ${name}`, async () => {
    using machine = new TestMachine({ memory: 2 ** 22, vm });
    machine.va.map(DATA_AT, DATA_END, null, 0, true, undefined);
    const data = range(DATA_AT, DATA_END);
    machine.vm.mapRange(machine.va.base + DATA_AT, data, { writable: true, executable: true, logDirty: !late });
    const control = new DataView(machine.va.view(0, 2 ** 22));
    const values = new Uint32Array(machine.va.view(DATA_AT, DATA_END));
    control.setUint32(ROUND_AT, 1, true);

    const vcpus: KvmVcpu[] = Array.from({ length: count }, (_, i) => {
      const vcpu = i === 0 ? machine.vcpu : machine.vm.createVcpu(i);
      startLongMode(vcpu, {
        write: (gpa, bytes) => machine.ram.write(gpa, bytes),
        tables: TABLES_AT + i * 0x8000,
        code: CODE_AT + i * PAGE,
        program: program(i),
        ranges: [{ start: 0, end: 2 ** 22 }, { start: DATA_AT, end: DATA_AT + 2 ** 31 }],
      });
      return vcpu;
    });
    const threads: VcpuThread[] = [];
    for (const vcpu of vcpus) threads.push(await VcpuThread.start(vcpu));
    const progress = () => vcpus.map((_, i) => control.getUint32(COUNT_AT + 64 * i, true));
    /** Waits until each vCPU has written another 1,024 pages. */
    const awaitGuest = () => {
      const before = progress();
      const deadline = performance.now() + 60_000;
      while (progress().some((loops, i) => loops <= before[i]!)) {
        assertLess(performance.now(), deadline, "the guest does not get on");
        Atomics.wait(NAP, 0, 0, 1);
      }
    };

    let round = 1;
    let expected = new Uint8Array(PAGES);
    let seen = 0;
    let early = 0;
    try {
      if (late) {
        awaitGuest();
        machine.vm.setDirtyLog(data, true);
        control.setUint32(ROUND_AT, ++round, true);
      }
      for (let i = 0; i < ROUNDS; i++, control.setUint32(ROUND_AT, ++round, true)) {
        awaitGuest();
        const logged = new Uint8Array(PAGES);
        machine.vm.takeDirty(data, (start, after) => {
          assert(start >= DATA_AT && after <= DATA_END && start < after);
          logged.fill(1, (start - DATA_AT) / PAGE, (after - DATA_AT) / PAGE);
        });
        const next = new Uint8Array(PAGES);
        let old = 0;
        for (let page = 0; page < PAGES; page++) {
          const value = values[page * (PAGE / 4)]!;
          if (logged[page] === 1) {
            seen++;
            if (value !== round && value !== round - 1) old++;
            continue;
          }
          assertEquals(expected[page], 0, `page ${page} was written in round ${round - 1} and never logged`);
          if (value > round) throw new Error(`page ${page} holds ${value} in round ${round}`);
          if (value === round) next[page] = 1;
        }
        expected = next;
        early += old;
        // An entry is made before its page is written, so a vCPU may be in between.
        assert(old <= count, `${old} pages are logged and were not written in round ${round} or the one before`);
      }
    } finally {
      for (const thread of threads) await thread.stop();
      if (vcpus.length > 1) { for (const vcpu of vcpus.slice(1)) vcpu[Symbol.dispose](); }
    }
    for (const thread of threads) assertEquals((await thread.ended).end, "asked");
    assert(seen >= ROUNDS * 512, `only ${seen} pages were logged`);
    assert(early <= ROUNDS * count);
  }, cap);
}

const NAP = new Int32Array(new SharedArrayBuffer(4));
