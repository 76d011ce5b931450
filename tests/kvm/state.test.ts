import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  decodeState,
  encodeState,
  KvmMpState,
  KvmVcpu,
  StateError,
  UnfinishedExitError,
  type VcpuState,
  type VmState,
} from "membacking/kvm";
import { OsError } from "membacking";
import { RealModeCode, TestMachine, VcpuThread } from "../support/guest.ts";
import { kvmTest } from "../support/require.ts";
import { ADDEND, APIC, type Counted, CountingMachine } from "./counting.ts";

/** A guest saved in the middle of its loop. */
interface Saved {
  readonly vcpu: VcpuState;
  readonly vm: VmState;
  readonly memory: Uint8Array<ArrayBuffer>;
}

/** Runs the guest in a Worker for a while, and saves it there; then it goes on to its end. */
async function saveInMidLoop(source: CountingMachine): Promise<Saved> {
  const thread = await VcpuThread.start(source.vcpu);
  let saved: Saved;
  let pause = 10;
  do {
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause *= 2;
    using _held = thread.pause();
    saved = { vcpu: source.vcpu.saveState(), vm: source.vm.saveState(), memory: source.memory };
  } while (saved.vcpu.regs.r8 === 0n);
  for (let [now, pause] = [saved.vcpu.regs.r8, 1]; now === saved.vcpu.regs.r8; pause *= 2) {
    await new Promise((resolve) => setTimeout(resolve, pause));
    using _held = thread.pause();
    now = source.vcpu.getRegs().r8;
  }
  source.tellToStop();
  assertEquals((await thread.ended).end, "stop-port");
  return saved;
}

function restore(saved: Saved): CountingMachine {
  const machine = new CountingMachine(saved.memory);
  machine.vcpu.restoreState(saved.vcpu);
  machine.vm.restoreState(saved.vm);
  return machine;
}

/** The SSE register is what the rounds make it, whoever made them. */
function assertSum({ rounds, sum }: Counted): void {
  assertEquals(sum, ADDEND.map((half) => BigInt.asUintN(64, half * rounds)) as [bigint, bigint]);
}

function lapic(state: VcpuState, register: number): number {
  assert(state.lapic !== null);
  return new DataView(state.lapic.buffer).getUint32(register, true);
}

kvmTest("a native guest saved in mid-loop goes on in another VM, with its SSE registers and its timers", async () => {
  using source = new CountingMachine();
  const saved = await saveInMidLoop(source);
  const { r8: rounds } = saved.vcpu.regs;
  assertSum(source.counted);
  assert(source.counted.rounds > rounds, "it was saved in mid-loop, and went on");

  using other = restore(saved);
  const [wanted, now] = [saved.vcpu, other.vcpu.saveState()];
  assertEquals([now.regs, now.sregs, now.xcrs, now.cpuid, now.debugRegs, now.mpState], [
    ...[wanted.regs, wanted.sregs, wanted.xcrs, wanted.cpuid, wanted.debugRegs, wanted.mpState],
  ]);
  assertEquals(now.xsave, wanted.xsave);
  // The timer of the local controller goes on from where it was.
  for (const register of [APIC.svr, APIC.timer, APIC.initial, APIC.divide]) {
    assertEquals(lapic(now, register), lapic(wanted, register));
  }
  const [before, after] = [lapic(wanted, APIC.current), lapic(now, APIC.current)];
  assert(before < 0xffff_ffff && after <= before && after > 0, `${before} and then ${after}`);
  // Those of the VM too; a channel's last word is when it was loaded, in the host's time.
  const vm = other.vm.saveState();
  assertEquals(vm.irqchips, saved.vm.irqchips);
  assertEquals(vm.pit?.subarray(0, 16), saved.vm.pit?.subarray(0, 16));
  assertEquals(new DataView(vm.pit!.buffer).getUint32(0, true), 0x1234);
  assert(vm.clock >= saved.vm.clock && vm.clock < saved.vm.clock + 60_000_000_000n, `${saved.vm.clock}, ${vm.clock}`);

  const counted = other.finish();
  assertSum(counted);
  assert(counted.rounds >= rounds && counted.total === counted.rounds, JSON.stringify([rounds, counted].map(String)));
  assert(lapic(other.vcpu.saveState(), APIC.current) <= after);
});

kvmTest("a vCPU is saved in each of many pauses, and never entered by who saves it", async () => {
  using source = new CountingMachine();
  const thread = await VcpuThread.start(source.vcpu);
  let rounds = 0n;
  for (let i = 0; i < 500; i++) {
    using _held = thread.pause();
    const { r8 } = source.vcpu.saveState().regs;
    assertEquals(source.vcpu.getRegs().r8, r8);
    assert(r8 >= rounds);
    rounds = r8;
  }
  source.tellToStop();
  assertEquals((await thread.ended).end, "stop-port");
  assertSum(source.counted);
});

kvmTest("three clones of one guest diverge, each right by itself", async () => {
  using source = new CountingMachine();
  const saved = await saveInMidLoop(source);
  const done = saved.vcpu.regs.r9;
  const clones = [3n, 50n, 700n].map((step) => {
    const clone = restore(structuredClone(saved));
    clone.step = step;
    return { step, clone };
  });
  const threads = await Promise.all(clones.map(({ clone }) => VcpuThread.start(clone.vcpu)));
  await new Promise((resolve) => setTimeout(resolve, 20));
  for (const [i, { step, clone }] of clones.entries()) {
    clone.tellToStop();
    assertEquals((await threads[i]?.ended)?.end, "stop-port");
    const { counted } = clone;
    assertSum(counted);
    // The round it was saved in may have loaded the old step already.
    const totals = [done, done + 1n].map((old) => old + (counted.rounds - old) * step);
    assert(totals.includes(counted.total), `step ${step}: ${counted.total}, not ${totals}`);
    clone[Symbol.dispose]();
  }
  assertEquals(source.counted.total, source.counted.rounds);
});

kvmTest("a guest goes on in another process, from files", async () => {
  using source = new CountingMachine();
  const saved = await saveInMidLoop(source);
  const directory = await Deno.makeTempDir();
  try {
    Deno.writeFileSync(`${directory}/memory`, saved.memory);
    Deno.writeFileSync(`${directory}/vcpu`, encodeState(saved.vcpu));
    Deno.writeFileSync(`${directory}/vm`, encodeState(saved.vm));
    const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", "--no-check", new URL("./children/resume.ts", import.meta.url).pathname, directory],
    }).output();
    assert(success, new TextDecoder().decode(stderr));
    const [rounds = 0n, total = 0n, low = 0n, high = 0n] = JSON.parse(new TextDecoder().decode(stdout)).map(BigInt);
    assertSum({ rounds, total, sum: [low, high] });
    assert(rounds >= saved.vcpu.regs.r8 && total === rounds);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});

kvmTest("an exit under way is finished before a vCPU is saved", () => {
  using machine = new TestMachine();
  machine.realMode(new RealModeCode().in(0x20, 4).out(0x10, 4).halt().bytes());
  const exit = machine.vcpu.run();
  assert(exit.kind === "io" && exit.direction === "in");
  exit.value = 0x1234_5678;
  const state = machine.vcpu.saveState();
  assertEquals(state.regs.rax & 0xffff_ffffn, 0x1234_5678n);
  assertEquals(machine.vcpu.immediateExit, false);
  using other = machine.vm.createVcpu(1);
  for (const vcpu of [machine.vcpu, other]) {
    vcpu.restoreState(state);
    const out = vcpu.run();
    assert(out.kind === "io" && out.port === 0x10 && out.value === 0x1234_5678, Deno.inspect(out));
  }
});

kvmTest("an exit in two halves is handed over when a vCPU is saved between them", () => {
  using machine = new TestMachine();
  machine.realMode(new RealModeCode().load(0xd000_0ffe, 4).out(0x10, 4).halt().bytes());
  const first = machine.vcpu.run();
  assert(first.kind === "mmio" && first.gpa === 0xd000_0ffe, Deno.inspect(first));
  first.value = 0x2211;
  const error = assertThrows(() => machine.vcpu.saveState(), UnfinishedExitError, "handle the error's exit");
  assert(error.exit.kind === "mmio" && error.exit.gpa === 0xd000_1000);
  error.exit.value = 0x4433;
  const state = machine.vcpu.saveState();
  assertEquals(state.regs.rax & 0xffff_ffffn, 0x4433_2211n);
  // Restored over an exit under way, that exit comes to nothing.
  const { vcpu } = machine;
  vcpu.setRegs({ rip: 0x1000n });
  assertEquals(vcpu.run().kind, "mmio");
  vcpu.restoreState(state);
  const out = vcpu.run();
  assert(out.kind === "io" && out.value === 0x4433_2211, Deno.inspect(out));
});

kvmTest("the task priority of a vCPU without an interrupt controller in the kernel is restored", () => {
  using machine = new TestMachine();
  machine.realMode(new RealModeCode().out(0x10, 1).out(0x11, 1).halt().bytes());
  machine.vcpu.run();
  const state = machine.vcpu.saveState();
  new DataView(state.sregs.buffer).setBigUint64(256, 5n, true); // CR8
  using other = new TestMachine();
  other.realMode(new RealModeCode().out(0x10, 1).out(0x11, 1).halt().bytes());
  other.vcpu.run();
  other.vcpu.restoreState(state);
  other.vcpu.run();
  assertEquals(other.vcpu.getSregs().cr8, 5n);
});

kvmTest("MSRs that do not take are reported, and nothing else", () => {
  using machine = new TestMachine();
  const state = machine.vcpu.saveState();
  const star = 0xc000_0081;
  const msrs = [
    { index: 0x12345, data: 7n },
    ...state.msrs.map((msr) => msr.index === star ? { ...msr, data: 9n } : msr),
  ];
  const { msrsNotTaken } = machine.vcpu.restoreState({ ...state, msrs });
  // Some KVMs cannot set the counter of time.
  assertEquals(msrsNotTaken.filter(({ index }) => index !== 0x10), [{ index: 0x12345, wanted: 7n, actual: null }]);
  assertEquals(machine.vcpu.getMsrs([star]), [{ index: star, data: 9n }]);
  assert(state.msrs.length > 20, `${state.msrs.length} MSRs`);
});

kvmTest("an attached vCPU is saved by the thread that has it", () => {
  using machine = new TestMachine();
  using attached = KvmVcpu.attach(machine.vcpu.share());
  const [ours, theirs] = [machine.vcpu.saveState(), attached.saveState()];
  assertEquals({ ...theirs, msrs: [] }, { ...ours, msrs: [] });
  assertEquals(theirs.msrs.map(({ index }) => index), ours.msrs.map(({ index }) => index));
});

kvmTest("a state is the same after it was stored, and can be cloned", () => {
  using machine = new CountingMachine();
  using plain = new TestMachine();
  for (
    const state of [machine.vcpu.saveState(), machine.vm.saveState(), plain.vcpu.saveState(), plain.vm.saveState()]
  ) {
    assertEquals(decodeState(encodeState(state)), state);
    assertEquals(structuredClone(state), state);
  }
  assertEquals([plain.vcpu.saveState().lapic, plain.vm.saveState().irqchips, plain.vm.saveState().pit], [
    null,
    null,
    null,
  ]);
  assertEquals(machine.vcpu.saveState().mpState, KvmMpState.RUNNABLE);
});

kvmTest("a state of a machine that was made otherwise is refused before anything changes", () => {
  using machine = new CountingMachine();
  using plain = new TestMachine();
  const with_ = { vcpu: machine.vcpu.saveState(), vm: machine.vm.saveState() };
  const without = { vcpu: plain.vcpu.saveState(), vm: plain.vm.saveState() };
  const refused = (use: () => unknown) => assertThrows(use, StateError).message;
  assertEquals(
    refused(() => plain.vcpu.restoreState(with_.vcpu)),
    "The state is of a vCPU with an interrupt controller in the kernel, call createIrqchip before the vCPU is made",
  );
  assertEquals(
    refused(() => machine.vcpu.restoreState(without.vcpu)),
    "This vCPU has an interrupt controller in the kernel, and the state is of one without",
  );
  assertEquals(
    refused(() => plain.vm.restoreState(with_.vm)),
    "The state is of a VM with interrupt controllers in the kernel, call createIrqchip first",
  );
  assertEquals(
    refused(() => machine.vm.restoreState(without.vm)),
    "This VM has interrupt controllers in the kernel, and the state is of one without",
  );
  assertEquals(
    refused(() => plain.vcpu.restoreState({ ...without.vcpu, xsave: new Uint8Array(2 ** 20) })),
    "The vector registers of the state take 1048576 bytes, and this host has 4096",
  );
  assertEquals(machine.vcpu.saveState().regs, with_.vcpu.regs);
});

kvmTest("what is no state is refused with what is wrong, and changes nothing", () => {
  using machine = new TestMachine();
  const { vcpu, vm } = machine;
  const [good, goodVm] = [vcpu.saveState(), vm.saveState()];
  const garbage: readonly (readonly [unknown, string])[] = [
    [null, "This is not the state of a vCPU"],
    ["abc", "This is not the state of a vCPU"],
    [goodVm, "This is not the state of a vCPU"],
    [{ ...good, version: "1" }, "it has no version"],
    [{ ...good, version: 2 }, "in version 2, and this package knows versions up to 1"],
    [{ ...good, xcrs: new Uint8Array(3) }, "xcrs has 3 bytes instead of 392"],
    [{ ...good, xsave: new Uint8Array(4095) }, "xsave has 4095 bytes instead of 4096 or more"],
    [{ ...good, sregs: {} }, "must be a Uint8Array"],
    [{ ...good, regs: { ...good.regs, rip: 5 } }, "rip must be a bigint"],
    [{ ...good, regs: {} }, "regs is not complete"],
    [{ ...good, regs: null }, "not the state of a vCPU"],
    [{ ...good, msrs: [{ index: -1, data: 0n }] }, "MSR index"],
    [{ ...good, msrs: { length: 2 ** 31 } }, "MSRs must be an array"],
    [{ ...good, cpuid: [{}] }, "CPUID function"],
    [{ ...good, mpState: 2 ** 32 }, "mpState"],
    [
      new Proxy(good, { get: (_, name) => name === "kind" ? "vcpu" : name === "version" ? 1 : undefined }),
      "not the state",
    ],
  ];
  for (const [state, message] of garbage) {
    assertThrows(() => vcpu.restoreState(state as VcpuState), StateError, message);
    if (state !== goodVm) assertThrows(() => encodeState(state as VcpuState), StateError);
  }
  for (
    const [state, message] of [[{ ...goodVm, pit: new Uint8Array(1) }, "pit has 1 bytes"], [good, "not the state of a"]]
  ) {
    assertThrows(() => vm.restoreState(state as VmState), StateError, message as string);
  }
  assertThrows(
    () => vm.restoreState({ ...goodVm, clock: 1 as unknown as bigint }),
    StateError,
    "clock must be a bigint",
  );
  assertEquals({ ...vcpu.saveState(), msrs: [] }, { ...good, msrs: [] });
  // The right shape with numbers that make no sense is for KVM to refuse.
  const sregs = good.sregs.slice();
  sregs.fill(0xff);
  assertThrows(() => vcpu.restoreState({ ...good, sregs }), OsError, "KVM_SET_SREGS2 failed with EINVAL");
  vcpu.restoreState(good);
  assertEquals(vcpu.saveState().sregs, good.sregs);
});

kvmTest("stored bytes that were cut off, changed or mixed up are refused", () => {
  using machine = new TestMachine();
  const bytes = encodeState(machine.vcpu.saveState());
  for (const length of [0, 7, 8, 23, 24, 100, bytes.length - 1]) {
    assertThrows(() => decodeState(bytes.subarray(0, length)), StateError, undefined, `${length} bytes`);
  }
  assertThrows(() => decodeState(new Uint8Array([...bytes, 0])), StateError, "instead of");
  for (let at = 0; at < bytes.length; at += at < 64 ? 1 : 37) {
    const changed = bytes.slice();
    changed[at] = (changed[at] ?? 0) ^ 0x10;
    assertThrows(() => decodeState(changed), StateError, undefined, `byte ${at}`);
  }
  for (let i = 0; i < 200; i++) {
    assertThrows(() => decodeState(crypto.getRandomValues(new Uint8Array(i * 7))), StateError);
  }
  for (const value of [null, "MBKSTATE", {}, new ArrayBuffer(100)]) {
    assertThrows(() => decodeState(value as Uint8Array), TypeError);
  }
});

// Written once by the version that made them, and never again.
const STORED = Deno.readTextFileSync(new URL("./fixtures/states.v1.txt", import.meta.url)).trim().split("\n");

Deno.test("states that version 1 has stored are read for good", async () => {
  const states = await Promise.all(STORED.map(async (line) => decodeState(await inflate(line))));
  const [vcpu, vm, bare] = states;
  assert(vcpu?.kind === "vcpu" && vm?.kind === "vm" && bare?.kind === "vm");
  assertEquals(states.map(({ version }) => version), [1, 1, 1]);
  assertEquals(vcpu.regs.rip, 0xffff_8000_1234_5678n);
  assertEquals(vcpu.msrs, [{ index: 0xc000_0080, data: 0xd01n }, { index: 0x10, data: 77n }]);
  assertEquals(vcpu.cpuid, [{ function: 1, index: 2, flags: 3, eax: 4, ebx: 5, ecx: 6, edx: 0xffff_ffff }]);
  assertEquals([vcpu.mpState, vcpu.xcrs[8], vcpu.sregs[9], vcpu.xsave[512], vcpu.lapic?.[11], vcpu.events[12]], [
    ...[3, 8, 9, 10, 11, 12],
  ]);
  assertEquals([vcpu.debugRegs[13], vm.irqchips?.map((chip) => chip[14]), vm.pit?.[15]], [13, [14, 15, 16], 15]);
  assertEquals([vm.clock, bare], [123n, { kind: "vm", version: 1, irqchips: null, pit: null, clock: 456n }]);
  for (const state of states) assertEquals(decodeState(encodeState(state)), state);
});

async function inflate(base64: string): Promise<Uint8Array> {
  const stream = new Blob([Uint8Array.fromBase64(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
