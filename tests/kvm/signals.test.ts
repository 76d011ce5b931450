import { assertEquals } from "@std/assert";
import { currentThreadId, EventFd, Kvm } from "membacking/kvm";
import { kickSignal } from "../../ffi/kvm/kick_signal.ts";
import { RunningVcpu, until } from "../clients/runner.ts";
import { TestMachine, touchForever } from "../support/guest.ts";
import { openFds } from "../support/proc.ts";
import { kvmTest } from "../support/require.ts";

/** Signals to this thread, a thousand a second, until disposed. */
class Storm implements Disposable {
  readonly #worker = new Worker(new URL("./storm_worker.ts", import.meta.url), { type: "module" });
  readonly #count = new Int32Array(new SharedArrayBuffer(8));

  static async begin(): Promise<Storm> {
    const storm = new Storm();
    storm.#worker.postMessage({ thread: currentThreadId(), signal: kickSignal(), count: storm.#count });
    await until(() => storm.count > 10, "signals come");
    return storm;
  }

  /** How many were sent. */
  get count(): number {
    return Atomics.load(this.#count, 0);
  }

  [Symbol.dispose](): void {
    Atomics.store(this.#count, 1, 1);
  }
}

kvmTest("virtual machines are made, used and kicked under a thousand signals a second", async () => {
  using kvm = Kvm.open();
  using running = new TestMachine();
  running.longMode(touchForever(0x20_0000, 0x20_0008, 8));
  const vcpu = new RunningVcpu(running.vcpu);
  await until(() => vcpu.control.isInside, "the guest runs");
  using storm = await Storm.begin();
  const fds = openFds();
  const from = storm.count;
  const SIGNALS = 1000;
  const MACHINES = 5;
  let machines = 0;
  for (; machines < MACHINES || storm.count - from < SIGNALS; machines++) {
    using vm = kvm.createVm();
    vm.createIrqchip();
    vm.createPit2();
    vm.mapRange(running.va.base, running.vm.slots[0]?.range ?? never(), { writable: true, executable: true });
    using event = new EventFd();
    using _bell = vm.ioeventfd(event.fd, { address: 0xd000_0000, length: 4 });
    using _irq = vm.irqfd(event.fd, 4);
    using made = vm.createVcpu(0);
    made.setCpuid2(kvm.getSupportedCpuid());
    made.setRegs({ ...made.getRegs(), rip: 0x1000n });
    made.setSregs(made.getSregs());
    made.setFpu(made.getFpu());
    assertEquals(made.getRegs().rip, 0x1000n);
    event.signal();
    using _held = vcpu.control.pause();
  }
  assertEquals(openFds(), fds);
  assertEquals(await vcpu.stop(), { interrupted: 1 });
});

function never(): never {
  throw new Error("there is a slot");
}
