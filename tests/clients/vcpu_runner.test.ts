import { assert, assertEquals, assertThrows } from "@std/assert";
import { DisposedError, Mappable, MembackingError, MemoryRange, OsError, RegionManager, VaMapper } from "membacking";
import { kickThread, Kvm, KvmVcpu, quiesceVcpus, VcpuControl, VcpuRunner, VcpuTimeoutError } from "membacking/kvm";
import { CODE_AT, pollForever, startLongMode, TABLES_AT, TestMachine, touchForever } from "../support/guest.ts";
import { mappings } from "../support/proc.ts";
import { kvmTest } from "../support/require.ts";
import { noQueuedSignals } from "../vm/children/limits.ts";
import { RunningVcpu, until } from "./runner.ts";

const TOUCHED = 0x20_0000;

/** What the guest counts up. */
function count(machine: TestMachine): bigint {
  const bytes = new Uint8Array(8);
  machine.ram.read(TOUCHED, bytes);
  return new DataView(bytes.buffer).getBigUint64(0, true);
}

/** Waits until what a terminated Worker had of the vCPU is given back. */
async function noAttachments(machine: TestMachine): Promise<void> {
  machine.vcpu[Symbol.dispose]();
  const left = () => mappings().filter(({ file }) => file.includes("kvm-vcpu")).length;
  await until(() => left() === 0, "no page of the vCPU is mapped");
}

function touching(): TestMachine {
  const machine = new TestMachine();
  machine.longMode(touchForever(TOUCHED, TOUCHED + 8, 8));
  return machine;
}

kvmTest("VcpuControl.kick() ends a run in the guest, and the next one where there is none", async () => {
  using machine = touching();
  const vcpu = new RunningVcpu(machine.vcpu);
  await vcpu.running;
  await until(() => count(machine) > 0n, "the guest runs");
  assert(vcpu.control.isInside);
  assertEquals(await vcpu.stop(), { interrupted: 1 });
  assertEquals(vcpu.control.isInside, false);

  machine.longMode(touchForever(TOUCHED, TOUCHED + 8, 8));
  const early = new RunningVcpu(machine.vcpu);
  early.control.kick();
  early.control.kick();
  assertEquals(await early.ended, { interrupted: 1 });
  early.worker.terminate();
});

kvmTest("VcpuControl.pause() holds the guest still until the last pause is over", async () => {
  using machine = touching();
  const vcpu = new RunningVcpu(machine.vcpu);
  await until(() => count(machine) > 0n, "the guest runs");

  for (let round = 0; round < 200; round++) {
    const first = vcpu.control.pause();
    const second = vcpu.control.pause();
    assertEquals(vcpu.control.pauses, 2);
    const before = count(machine);
    first[Symbol.dispose]();
    first[Symbol.dispose]();
    for (let i = 0; i < 50; i++) assertEquals(count(machine), before);
    second[Symbol.dispose]();
    if (round % 20 === 0) await until(() => count(machine) > before, "the guest runs again");
  }
  // Pauses are not seen by the thread that runs the vCPU.
  assertEquals(await vcpu.stop(), { interrupted: 1 });
});

kvmTest("a kick during a pause comes through at once", async () => {
  using machine = touching();
  const vcpu = new RunningVcpu(machine.vcpu);
  await until(() => count(machine) > 0n, "the guest runs");
  using _paused = vcpu.control.pause();
  assertEquals(await vcpu.stop(), { interrupted: 1 });
});

kvmTest("a pause does not wait for a thread that has ended inside the guest", async () => {
  using machine = touching();
  const vcpu = new RunningVcpu(machine.vcpu);
  await until(() => count(machine) > 0n, "the guest runs");
  vcpu.worker.terminate();
  assert(vcpu.control.isInside, "Deno does not stop a Worker that is in the guest");
  vcpu.control.kick();
  const started = performance.now();
  {
    using _paused = vcpu.control.pause();
  }
  assert(performance.now() - started < 5000);
  vcpu.control[Symbol.dispose]();
  await noAttachments(machine);
});

kvmTest("a disposed VcpuControl refuses everything but the end of its pauses", () => {
  using machine = new TestMachine();
  const control = new VcpuControl(machine.vcpu);
  const pause = control.pause();
  control[Symbol.dispose]();
  assertThrows(() => control.pause(), DisposedError);
  assertThrows(() => control.kick(), DisposedError);
  assertThrows(() => control.share(), DisposedError);
  pause[Symbol.dispose]();
  assertEquals(control.pauses, 0);
});

kvmTest("quiesceVcpus: a native guest sees nothing of slots that go away and come back", async () => {
  const [RANGE, LENGTH] = [0x40_0000, 0x1_0000];
  const controls = new Set<VcpuControl>();
  let holds = 0;
  const quiesce = quiesceVcpus(controls);
  using kvm = Kvm.open();
  using va = VaMapper.reserve(0x1000_0000);
  using vm = kvm.createVm();
  using regions = new RegionManager(va, {
    quiesce: () => {
      holds++;
      return quiesce();
    },
  });
  using _attached = regions.addPartition(vm);
  using file = Mappable.memfd("ram", 0x100_0000);
  using ram = regions.newRegion({ name: "ram", range: new MemoryRange(0, 0x40_0000), priority: 0 });
  ram.addMapping({ rangeInRegion: new MemoryRange(0, 0x40_0000), mappable: file });
  ram.map();
  // Two windows on one range: one mapping that may be written, and two that may not.
  using whole = regions.newRegion({ name: "whole", range: MemoryRange.of(RANGE, LENGTH), priority: 2 });
  whole.addMapping({ rangeInRegion: new MemoryRange(0, LENGTH), mappable: file, fileOffset: 0x40_0000 });
  using parts = regions.newRegion({ name: "parts", range: MemoryRange.of(RANGE, LENGTH), priority: 1 });
  for (const at of [0, LENGTH / 2]) {
    const rangeInRegion = MemoryRange.of(at, LENGTH / 2);
    parts.addMapping({ rangeInRegion, mappable: file, fileOffset: 0x60_0000 + at, writable: false });
  }
  const values = new BigUint64Array(LENGTH / 8);
  file.write(0x40_0000, new Uint8Array(values.fill(0x1111n).buffer));
  file.write(0x60_0000, new Uint8Array(values.fill(0x2222n).buffer));
  whole.map();
  parts.map();

  using vcpu = vm.createVcpu(0);
  vcpu.setCpuid2(kvm.getSupportedCpuid());
  const counter = 0x20_0000;
  startLongMode(vcpu, {
    write: (gpa, bytes) => regions.memory.write(gpa, bytes),
    tables: TABLES_AT,
    code: CODE_AT,
    program: pollForever({ start: RANGE, end: RANGE + LENGTH, step: 0x1000, expected: [0x1111, 0x2222], counter }),
    ranges: [{ start: 0, end: RANGE + 0x20_0000 }],
  });
  const running = new RunningVcpu(vcpu);
  controls.add(running.control);
  await until(() => regions.memory.readBigUint64(counter) > 0n, "the guest runs");
  for (let round = 0; round < 300; round++) {
    whole.unmap();
    whole.map();
    if (round % 30 === 0) {
      const before = regions.memory.readBigUint64(counter);
      await until(() => regions.memory.readBigUint64(counter) > before, "the guest runs again");
    }
  }
  assert(holds >= 600, `${holds} holds`);
  assertEquals(await running.stop(), { interrupted: 1 });
});

kvmTest("kicks and pauses need --allow-ffi alone", async () => {
  const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "--no-prompt",
      "--allow-ffi",
      `--allow-read=${new URL("../../", import.meta.url).pathname}`, // for the Worker's own module
      "--config",
      new URL("../../deno.json", import.meta.url).pathname,
      new URL("./runner_child.ts", import.meta.url).href,
    ],
    stdout: "piped",
    stderr: "piped",
  }).output();
  assert(success, new TextDecoder().decode(stderr));
  assertEquals(new TextDecoder().decode(stdout), "paused, kicked\n");
});

kvmTest("a full queue of signals does not keep a vCPU from being paused and kicked", async () => {
  using machine = touching();
  const vcpu = new RunningVcpu(machine.vcpu);
  await until(() => count(machine) > 0n, "the guest runs");
  {
    using _full = noQueuedSignals();
    using _paused = vcpu.control.pause();
    const before = count(machine);
    for (let i = 0; i < 50; i++) assertEquals(count(machine), before);
  }
  assertEquals(vcpu.control.pauses, 0);
  const before = count(machine);
  await until(() => count(machine) > before, "the guest runs again");
  assertEquals(await vcpu.stop(), { interrupted: 1 });
});

kvmTest("a pause that fails is no pause, alone or among others", async () => {
  using machine = touching();
  using other = new TestMachine();
  using shared = KvmVcpu.attach(machine.vcpu.share());
  const vcpu = new RunningVcpu(machine.vcpu);
  using idle = new VcpuControl(other.vcpu);
  await until(() => count(machine) > 0n, "the guest runs");
  machine.vcpu[Symbol.dispose]();
  assertThrows(() => vcpu.control.pause(), DisposedError, "vCPU has been disposed");
  assertThrows(quiesceVcpus([idle, vcpu.control]), DisposedError);
  assertEquals([vcpu.control.pauses, idle.pauses], [0, 0]);
  const before = count(machine);
  await until(() => count(machine) > before, "the guest goes on");
  assertThrows(() => vcpu.control.kick(), DisposedError); // and the wish to be kicked stays
  shared.immediateExit = true;
  const tid = new Int32Array(vcpu.words)[1] ?? 0;
  kickThread(tid, 16);
  assertEquals(await vcpu.ended, { interrupted: 1 });
  vcpu.worker.terminate();
  shared[Symbol.dispose]();
  other.vcpu[Symbol.dispose]();
  await noAttachments(machine);
});

kvmTest("a pause gets the vCPU out of the guest, wherever its words say that it is and in which thread", async () => {
  using machine = touching();
  const vcpu = new RunningVcpu(machine.vcpu);
  await until(() => count(machine) > 0n, "the guest runs");
  const words = new Int32Array(vcpu.words);
  const [state, thread, started, attached] = [0, 1, 2, 4];
  const scribbles: Readonly<Record<number, number>>[] = [
    ...[{ [state]: 0 }, { [state]: 77 }, { [thread]: 0 }, { [thread]: 1 }, { [thread]: Deno.pid }],
    ...[{ [thread]: 2 ** 31 - 1 }, { [thread]: -5 }, { [started]: 1 }, { [attached]: 0 }],
    ...[{ [state]: 0, [thread]: 0 }, { [state]: 0, [thread]: 5, [started]: 9, [attached]: 0 }],
  ];
  for (const scribble of scribbles) {
    const before = words.slice();
    for (const [at, value] of Object.entries(scribble)) words[Number(at)] = value;
    {
      using _paused = vcpu.control.pause();
      // Without asking the vCPU first: that would wait in the kernel for as long as it runs.
      await until(() => {
        const seen = count(machine);
        return Array.from({ length: 200 }, () => count(machine)).every((now) => now === seen);
      }, `the guest stands still with ${JSON.stringify(scribble)}`);
      assert(machine.vcpu.getRegs().rip > 0n);
    }
    for (const at of [thread, started, attached]) words[at] = before[at] ?? 0;
    const reached = count(machine);
    await until(() => count(machine) > reached, "the guest runs again");
  }
  assertEquals(await vcpu.stop(), { interrupted: 1 });
});

kvmTest("a pause leaves a vCPU that nobody runs free to enter the guest", () => {
  using machine = touching();
  using control = new VcpuControl(machine.vcpu);
  {
    using runner = VcpuRunner.attach(control.share());
    control.pause()[Symbol.dispose]();
    control.kick();
    assertEquals(runner.run().kind, "interrupted");
    control.pause()[Symbol.dispose]();
  }
  control.pause()[Symbol.dispose]();
  assertEquals(machine.vcpu.immediateExit, false);
  // One that is gone and was not in the guest is out of it.
  machine.vcpu[Symbol.dispose]();
  control.pause()[Symbol.dispose]();
  assertEquals(control.pauses, 0);
});

kvmTest("a pause waits no longer than its deadline, whatever the runner's words say", async () => {
  using machine = new TestMachine();
  using control = new VcpuControl(machine.vcpu, { deadline: 100 });
  const words = new Int32Array(control.share().words);
  // A runner that says that it is inside, and a thread that lives but runs nothing.
  const idle = new Worker(new URL("./idle_worker.ts", import.meta.url), { type: "module" });
  const tid = await new Promise<number>((resolve) => idle.onmessage = ({ data }) => resolve(data));
  words.set([1, tid, 0, 0]);
  const error = assertThrows(() => control.pause(), VcpuTimeoutError, "did not come out of the guest within 100 ms");
  assertEquals([error.milliseconds, control.pauses], [100, 0]);
  idle.terminate();
  // Garbage for a thread is an error or nobody, and leaves no pause behind either.
  for (const garbage of [-1, 0, 2 ** 31 - 1]) {
    words.set([1, garbage, 0, 0]);
    try {
      control.pause()[Symbol.dispose]();
    } catch (error) {
      assert(error instanceof RangeError || error instanceof OsError, String(error));
    }
    assertEquals(control.pauses, 0);
  }
  for (const deadline of [-1, NaN, 0.5]) {
    assertThrows(() => new VcpuControl(machine.vcpu, { deadline }), RangeError, "Deadline");
  }
});

kvmTest("a vCPU has one control at a time, and a control one runner", async () => {
  using machine = touching();
  const control = new VcpuControl(machine.vcpu);
  assertThrows(() => new VcpuControl(machine.vcpu), MembackingError, "This vCPU has a VcpuControl already");
  {
    using runner = VcpuRunner.attach(control.share());
    assertThrows(
      () => VcpuRunner.attach(control.share()),
      MembackingError,
      "Another VcpuRunner runs this vCPU already",
    );
    assertThrows(() => new VcpuControl(machine.vcpu), MembackingError);
    control.kick();
    assertEquals(runner.run().kind, "interrupted");
  }
  for (const words of [new SharedArrayBuffer(8), {}, 5]) {
    assertThrows(() => VcpuRunner.attach({ ...control.share(), words: words as SharedArrayBuffer }));
  }
  VcpuRunner.attach(control.share())[Symbol.dispose]();
  control[Symbol.dispose]();
  const next = new RunningVcpu(machine.vcpu);
  await until(() => count(machine) > 0n, "the guest runs");
  await next.stop();
  machine.vcpu[Symbol.dispose]();
  assertThrows(() => new VcpuControl(machine.vcpu), DisposedError, "vCPU has been disposed");
});

kvmTest("where only a queued signal is to be had, a full queue is an error that leaves no pause behind", async () => {
  const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", new URL("./full_queue_child.ts", import.meta.url).pathname],
  }).output();
  assert(success, new TextDecoder().decode(stderr));
  assertEquals(
    new TextDecoder().decode(stdout),
    "tgkill failed with EAGAIN (temporarily unavailable): thread N: the user's queue of signals is full, " +
      "raise its limit (ulimit -i)\n0 pauses, still running, then interrupted\n",
  );
});
