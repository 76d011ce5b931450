import { assert, assertEquals, assertGreater, assertThrows } from "@std/assert";
import { currentThreadId, kickThread } from "../../ffi/kvm/mod.ts";
import { Mappable } from "../../ffi/files/mappable.ts";
import { OsError } from "../../ffi/os/os_error.ts";
import { pollForever, readEach, REPORT_PORT, TestMachine, touchForever, VcpuThread } from "../support/guest.ts";
import { kvmTest } from "../support/require.ts";

const WINDOW = 0x100_0000;
const WINDOW_END = WINDOW + 0x20_0000;

Deno.test("a thread has a number, and one that is gone cannot be kicked", () => {
  assertGreater(currentThreadId(), 0);
  assertEquals(assertThrows(() => kickThread(2 ** 22 + 1), OsError, "tgkill").code, "ESRCH");
  for (const tid of [-1, 0.5, NaN]) assertThrows(() => kickThread(tid), RangeError);
});

kvmTest("a vCPU in a Worker runs to its end and reports what it did", async () => {
  using machine = new TestMachine();
  machine.ram.write(0x80_0000, new Uint8Array([1, 0, 0, 0, 2]));
  machine.longMode(readEach([0x80_0000, 0x80_0004]));
  await using thread = await VcpuThread.start(machine.vcpu);
  const report = await thread.ended;
  assertEquals(report.end, "stop-port");
  assertEquals(report.portWrites, [{ port: REPORT_PORT, value: 1 }, { port: REPORT_PORT, value: 2 }]);
  assertEquals(report.exits, { io: 3 });
});

kvmTest("a guest that never leaves by itself is paused, resumed and stopped, as often as wanted", async () => {
  using machine = new TestMachine();
  const counter = 0x8000;
  machine.longMode(pollForever({ start: 0x80_0000, end: 0x90_0000, step: 8, expected: [0], counter }));
  await using thread = await VcpuThread.start(machine.vcpu);
  const bytes = new Uint8Array(8);
  const count = () => {
    machine.ram.read(counter, bytes);
    return new DataView(bytes.buffer).getBigUint64(0, true);
  };
  for (let i = 0; i < 200; i++) {
    using _held = thread.pause();
    using _again = thread.pause();
    const before = count();
    for (const until = performance.now() + 0.2; performance.now() < until;);
    assertEquals(count(), before, "the guest ran while it was paused");
  }
  const before = count();
  await new Promise((resolve) => setTimeout(resolve, 50));
  assertGreater(Number(count() - before), 1000, "the guest goes on after a pause");
  assertEquals((await thread.stop()).end, "asked");
});

kvmTest("replacing memory under a running guest shows it the old or the new, and nothing else", async () => {
  using machine = new TestMachine();
  const files = [0xaa, 0xbb].map((value) => {
    const file = Mappable.memfd(`all ${value.toString(16)}`, WINDOW_END - WINDOW);
    file.write(0, new Uint8Array(file.size).fill(value));
    return file;
  });
  const replace = (i: number) => {
    const file = files[i % 2];
    if (file !== undefined) machine.va.map(WINDOW, WINDOW_END, file, 0, true, undefined);
  };
  replace(0);
  machine.show(WINDOW, WINDOW_END);
  const expected = [0xaaaa_aaaa_aaaa_aaaan, 0xbbbb_bbbb_bbbb_bbbbn];
  machine.longMode(
    pollForever({ start: WINDOW, end: WINDOW_END, step: 0x1000, expected, counter: 0x8000 }),
    [{ start: WINDOW, end: WINDOW_END }],
  );
  await using thread = await VcpuThread.start(machine.vcpu);
  for (let i = 1; i <= 5000; i++) replace(i);
  const report = await thread.stop();
  assertEquals([report.portWrites, report.mmio, report.exits.fault ?? 0], [[], [], 0]);
  for (const file of files) file[Symbol.dispose]();
});

kvmTest("a slot that is deleted and made anew while the guest is paused is no exit", async () => {
  using machine = new TestMachine();
  machine.va.map(WINDOW, WINDOW_END, null, 0, true, undefined);
  machine.show(WINDOW, WINDOW_END);
  machine.longMode(touchForever(WINDOW, WINDOW_END, 0x1000), [{ start: WINDOW, end: WINDOW_END }]);
  await using thread = await VcpuThread.start(machine.vcpu);
  const [, slot] = machine.vm.slots;
  assert(slot !== undefined);
  for (let i = 0; i < 100; i++) {
    using _held = thread.pause();
    machine.vm.unmapRange(slot.range);
    machine.vm.mapRange(slot.hva, slot.range, { writable: true, executable: true });
  }
  const { end, mmio, exits } = await thread.stop();
  assertEquals([end, mmio, exits.fault ?? 0], ["asked", [], 0]);
});
