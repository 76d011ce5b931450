/**
 * A virtual machine whose guest drives a disk that another process serves.
 *
 * @module
 */

import { GuestMemoryManager, MemoryRange } from "membacking";
import { EventFd, Kvm } from "membacking/kvm";
import { VhostUserFrontend, VhostUserMemory, type VhostUserOptions } from "membacking/vhost-user";
import { startLongMode, VcpuThread } from "../guest/mod.ts";
import { blockDriver, type BlockRequest, DOORBELL, LAYOUT, Mailbox, QUEUE_SIZE } from "./block_driver.ts";

/** The virtio feature without which a device is a legacy one (VIRTIO_F_VERSION_1). */
const VERSION_1 = 1n << 32n;
/** The length of RAM, in bytes. */
export const RAM_LENGTH = 0x200_0000;

/** What the guest can address: RAM and the doorbell. */
const RANGES = [{ start: 0, end: RAM_LENGTH }, { start: DOORBELL, end: DOORBELL + 0x20_0000 }];

/** A machine, its guest running. */
export class DiskMachine implements AsyncDisposable {
  readonly guest: GuestMemoryManager;
  readonly frontend: VhostUserFrontend;
  readonly memory: VhostUserMemory;
  /** What the back end signals for each request it has carried out. */
  readonly call: EventFd;
  /** How many sectors the disk has. */
  readonly sectors: number;
  readonly #mailbox: Mailbox;
  readonly #stack: AsyncDisposableStack;

  private constructor(parts: Omit<DiskMachine, "request" | "closed">, stack: AsyncDisposableStack) {
    ({ guest: this.guest, frontend: this.frontend, memory: this.memory, call: this.call, sectors: this.sectors } =
      parts);
    this.#mailbox = new Mailbox(this.guest.memory);
    this.#stack = stack;
  }

  /** Makes a machine with the disk that is served at `socket`. */
  static async start(socket: string, options: VhostUserOptions = {}): Promise<DiskMachine> {
    await using stack = new AsyncDisposableStack();
    const guest = stack.use(GuestMemoryManager.create({
      maxAddress: 0x8_0000_0000,
      ram: [{ ranges: [new MemoryRange(0, RAM_LENGTH)] }],
      x86Legacy: true,
    }));
    const kvm = stack.use(Kvm.open());
    const vm = stack.use(kvm.createVm());
    stack.use(guest.attachPartition(vm));

    const frontend = stack.use(await VhostUserFrontend.connect(socket, { patience: 10_000, ...options }));
    const memory = stack.use(new VhostUserMemory(frontend));
    stack.use(guest.regions.addDmaTarget(memory));
    const config = await frontend.getConfig(0, 8);
    const sectors = Number(new DataView(config.buffer).getBigUint64(0, true));

    const kick = stack.use(new EventFd());
    const call = stack.use(new EventFd());
    stack.use(vm.ioeventfd(kick.fd, { address: DOORBELL, length: 4 }));
    await frontend.setFeatures(frontend.features & VERSION_1);
    const { descriptor, available, used } = LAYOUT;
    await frontend.startVring(0, { size: QUEUE_SIZE, descriptor, available, used, kick, call });

    const vcpu = stack.use(vm.createVcpu(0));
    vcpu.setCpuid2(kvm.getSupportedCpuid());
    startLongMode(vcpu, {
      write: (gpa, bytes) => guest.memory.write(gpa, bytes),
      ...{ tables: LAYOUT.tables, code: LAYOUT.code, program: blockDriver(), ranges: RANGES },
    });
    stack.use(await VcpuThread.start(vcpu));
    return new DiskMachine({ guest, frontend, memory, call, sectors } as DiskMachine, stack.move());
  }

  /** Has the guest make a request, and waits for its end: how long it took, in microseconds for one. */
  async request(request: BlockRequest): Promise<number> {
    const start = performance.now();
    this.#mailbox.post(request);
    for (let status = this.#mailbox.status;; status = this.#mailbox.status) {
      const waited = performance.now() - start;
      if (status !== null) {
        if (status !== 0) throw new Error(`The disk ended a ${request.type} with status ${status}`);
        return 1000 * waited / (request.count ?? 1);
      }
      // At first by looking, so that the time is that of the disk; then on the event loop.
      if (waited > 20) await new Promise((resolve) => setTimeout(resolve, 1));
      if (waited > 20_000) throw new Error("The disk does not answer");
    }
  }

  /** Stops the guest and gives everything up. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
  }
}
