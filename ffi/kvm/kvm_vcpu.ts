/**
 * A virtual processor.
 *
 * Why it is safe: the descriptor is this object's own, and every struct handed to the kernel has the size its request
 * asks for. A vCPU can reach guest memory only through the slots of its VM, and those are gone before host memory is:
 * see `KvmVm`.
 *
 * @module
 */

import { DisposedError } from "../../src/core/errors.ts";
import { checkNumber } from "../../src/core/memory_range.ts";
import { libc } from "../os/libc.ts";
import { F_DUPFD_CLOEXEC } from "../os/mman.ts";
import { Errno, OsError, unwrap } from "../os/os_error.ts";
import { decodeMsrs, encodeCpuid, encodeMsrs, type KvmCpuidEntry, type KvmMsr } from "./cpuid_msrs.ts";
import type { KvmExit } from "./exits.ts";
import { ioctl, REQUEST } from "./ioctl.ts";
import { FPU, INTERRUPT, MP_STATE, REGS, SREGS } from "./layout.ts";
import {
  allRegs,
  decodeFpu,
  decodeRegs,
  decodeSregs,
  encodeFpu,
  encodeRegs,
  encodeSregs,
  type KvmFpu,
  type KvmRegs,
  type KvmSregs,
} from "./registers.ts";
import { RingReader, type SharedRing } from "./ring_reader.ts";
import { RING_FULL, RunPage } from "./run_page.ts";

/** What another thread of this process needs to use a vCPU. Plain data: send it with `postMessage`. */
export interface SharedVcpu {
  /** The vCPU's descriptor, which stays the property of the `KvmVcpu` it was taken from. */
  readonly fd: number;
  /** The length of what it shares with the VMM, in bytes. */
  readonly runSize: number;
  /** Its ring of written pages, where the VM has been made with `dirtyLog: "ring"`. */
  readonly ring?: SharedRing;
}

/** Who wants to know about a vCPU's life: its VM. */
export interface VcpuOwner {
  /** The vCPU's descriptor was handed out; copies of it may outlive this object. */
  shared(): void;
  /** The vCPU was disposed. */
  gone(vcpu: KvmVcpu): void;
}

/**
 * A virtual processor of a `KvmVm`.
 *
 * `run` blocks the thread for as long as the guest stays inside, and so its event loop: a guest that does not come out
 * by itself belongs in a Worker. Make the vCPU where the VM is, `share` it, and `attach` to it in the Worker. To get it
 * out from another thread, use `kickThread`.
 */
export class KvmVcpu implements Disposable {
  #fd: number;
  #run: RunPage;
  #runSize: number;
  #owner: VcpuOwner | undefined;
  #sharedRing: SharedRing | undefined;
  #ring: RingReader | undefined;
  #disposed = false;

  private constructor(
    fd: number,
    runSize: number,
    owner: VcpuOwner | undefined,
    ring: () => SharedRing | undefined,
  ) {
    this.#fd = fd;
    this.#runSize = runSize;
    this.#owner = owner;
    using undo = new DisposableStack();
    undo.defer(() => libc().sys.close(fd));
    this.#run = undo.use(new RunPage(fd, runSize));
    this.#sharedRing = ring();
    if (this.#sharedRing !== undefined) this.#ring = new RingReader(fd, this.#sharedRing);
    undo.move();
  }

  /**
   * Takes over the descriptor of a new vCPU. Only `KvmVm.createVcpu` calls it.
   *
   * @internal
   */
  static own(fd: number, runSize: number, owner: VcpuOwner, ring: () => SharedRing | undefined): KvmVcpu {
    return new KvmVcpu(fd, runSize, owner, ring);
  }

  /**
   * Attaches to a vCPU that another thread of this process has shared. The descriptor is duplicated, so either side can
   * be disposed first; but the sharer must not be disposed before the other side has attached. Two threads must not
   * `run` one vCPU at a time: the second waits for the first, inside the kernel. So does attaching, and reading or
   * setting a register, while another thread runs it.
   *
   * Disposing the VM takes its memory away from the guest even while an attached vCPU runs.
   *
   * @throws {OsError} If the descriptor is no vCPU's.
   */
  static attach(shared: SharedVcpu): KvmVcpu {
    checkNumber(shared.fd, "File descriptor");
    checkNumber(shared.runSize, "Size of the shared area");
    const { sys, errno } = libc();
    const fd = unwrap(sys.fcntl(shared.fd, F_DUPFD_CLOEXEC, 0), errno[0], "fcntl", () => `vCPU ${shared.fd}`);
    try {
      // Fails for everything that is no vCPU.
      ioctl(fd, "KVM_GET_MP_STATE", new Uint8Array(MP_STATE.size), () => `file descriptor ${shared.fd} is no vCPU`);
    } catch (error) {
      sys.close(fd);
      throw error;
    }
    return new KvmVcpu(fd, shared.runSize, undefined, () => shared.ring);
  }

  /** What `attach` needs in another thread. Keep this object until the other side has attached. */
  share(): SharedVcpu {
    const fd = this.#checked();
    this.#owner?.shared();
    const ring = this.#sharedRing;
    return { fd, runSize: this.#runSize, ...(ring === undefined ? {} : { ring }) };
  }

  /**
   * Runs the guest until it needs the VMM. Blocks the thread. A ring of written pages that is full is harvested on the
   * way, and the guest goes on.
   *
   * The result is overwritten by the next `run`. For an `"in"` or a reading `"mmio"` exit, fill `data` before it.
   *
   * @throws {OsError} If KVM reports a failure that is not an exit.
   */
  run(): KvmExit {
    const fd = this.#checked();
    const { sys, errno } = libc();
    while (true) {
      // SAFETY: KVM_RUN takes no argument; the guest reaches the memory of its slots only.
      const failed = sys.ioctlValue(fd, REQUEST.KVM_RUN, 0n) === -1 ? errno[0] ?? 0 : 0;
      if (failed === 0) {
        const exit = this.#run.exit();
        // A ring in which there is nothing to harvest would be full for good: then the VMM has to know.
        if (exit === RING_FULL && this.#ring?.spill() === true) continue;
        return exit;
      }
      if (failed === Errno.EFAULT) return this.#run.fault();
      // EAGAIN: the vCPU had waited for another to start it, and has to be run once more.
      if (failed === Errno.EINTR || failed === Errno.EAGAIN) return this.#run.interrupted();
      throw new OsError("KVM_RUN", failed);
    }
  }

  /**
   * Whether the next `run` returns `"interrupted"` before it enters the guest, finishing an exit that is under way. May
   * be set from any thread that has the vCPU; stays set until it is cleared.
   */
  get immediateExit(): boolean {
    this.#checked();
    return this.#run.immediateExit;
  }

  set immediateExit(on: boolean) {
    this.#checked();
    this.#run.immediateExit = on;
  }

  /** Whether `run` returns `"irq-window-open"` as soon as the guest can take an interrupt. */
  get requestInterruptWindow(): boolean {
    this.#checked();
    return this.#run.requestInterruptWindow;
  }

  set requestInterruptWindow(on: boolean) {
    this.#checked();
    this.#run.requestInterruptWindow = on;
  }

  /** Whether `interrupt` would be delivered at once, as of the last exit. */
  get readyForInterrupt(): boolean {
    this.#checked();
    return this.#run.readyForInterrupt;
  }

  /**
   * Injects an external interrupt, 0 to 255. For VMs without an in-kernel interrupt controller.
   *
   * @throws {OsError} ENXIO if there is an in-kernel controller, EEXIST if an interrupt is pending already.
   */
  interrupt(vector: number): void {
    if (!Number.isInteger(vector) || vector < 0 || vector > 255) {
      throw new RangeError(`${vector} is no vector in 0..255`);
    }
    const struct = new Uint8Array(INTERRUPT.size);
    struct[INTERRUPT.irq] = vector;
    ioctl(this.#checked(), "KVM_INTERRUPT", struct, () => `vector ${vector}`);
  }

  /** Reads the general registers. */
  getRegs(): KvmRegs {
    return decodeRegs(this.#get("KVM_GET_REGS", REGS.size));
  }

  /** Sets the general registers that are given; the others keep their values. */
  setRegs(regs: Partial<KvmRegs>): void {
    const fd = this.#checked();
    const struct = allRegs(regs) ? new Uint8Array(REGS.size) : this.#get("KVM_GET_REGS", REGS.size);
    encodeRegs(struct, regs);
    ioctl(fd, "KVM_SET_REGS", struct);
  }

  /** Reads the special registers. */
  getSregs(): KvmSregs {
    return decodeSregs(this.#get("KVM_GET_SREGS", SREGS.size));
  }

  /**
   * Sets the special registers that are given; the others keep their values.
   *
   * @throws {OsError} EINVAL if they contradict each other.
   */
  setSregs(sregs: Partial<KvmSregs>): void {
    const struct = this.#get("KVM_GET_SREGS", SREGS.size);
    encodeSregs(struct, sregs);
    ioctl(this.#checked(), "KVM_SET_SREGS", struct);
  }

  /** Reads the x87 and SSE registers. */
  getFpu(): KvmFpu {
    return decodeFpu(this.#get("KVM_GET_FPU", FPU.size));
  }

  /** Sets the x87 and SSE registers. */
  setFpu(fpu: KvmFpu): void {
    ioctl(this.#checked(), "KVM_SET_FPU", encodeFpu(fpu));
  }

  /**
   * Reads model-specific registers.
   *
   * @throws {RangeError} If KVM does not know one of them; the message says which.
   */
  getMsrs(indices: readonly number[]): KvmMsr[] {
    const struct = encodeMsrs(indices.map((index) => ({ index, data: 0n })));
    const count = ioctl(this.#checked(), "KVM_GET_MSRS", struct);
    checkMsrs(count, indices);
    return decodeMsrs(struct, count);
  }

  /**
   * Sets model-specific registers, in order.
   *
   * @throws {RangeError} If KVM refuses one; the message says which. Those before it are set.
   */
  setMsrs(msrs: readonly KvmMsr[]): void {
    checkMsrs(ioctl(this.#checked(), "KVM_SET_MSRS", encodeMsrs(msrs)), msrs.map((msr) => msr.index));
  }

  /** Sets what the CPUID instruction says, most often `Kvm.getSupportedCpuid()` with changes. */
  setCpuid2(entries: readonly KvmCpuidEntry[]): void {
    ioctl(this.#checked(), "KVM_SET_CPUID2", encodeCpuid(entries));
  }

  /** Whether the vCPU runs, halts or waits to be started: a `KvmMpState`. */
  get mpState(): number {
    return this.#get("KVM_GET_MP_STATE", MP_STATE.size)[MP_STATE.mp_state] ?? 0;
  }

  set mpState(state: number) {
    checkNumber(state, "State");
    const struct = new Uint8Array(MP_STATE.size);
    new DataView(struct.buffer).setUint32(MP_STATE.mp_state, state, true);
    ioctl(this.#checked(), "KVM_SET_MP_STATE", struct, () => `state ${state}`);
  }

  /** Closes the vCPU. The `data` of an earlier exit is empty afterwards. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    libc().sys.close(this.#fd);
    this.#owner?.gone(this);
    this.#ring?.[Symbol.dispose]();
    this.#run[Symbol.dispose]();
  }

  #checked(): number {
    if (this.#disposed) throw new DisposedError("vCPU");
    return this.#fd;
  }

  #get(
    name: "KVM_GET_REGS" | "KVM_GET_SREGS" | "KVM_GET_FPU" | "KVM_GET_MP_STATE",
    size: number,
  ): Uint8Array<ArrayBuffer> {
    const struct = new Uint8Array(size);
    ioctl(this.#checked(), name, struct);
    return struct;
  }
}

function checkMsrs(count: number, indices: readonly number[]): void {
  const refused = indices[count];
  if (refused !== undefined) throw new RangeError(`KVM does not take MSR 0x${refused.toString(16)} with this value`);
}
