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
import { checkAligned } from "../../src/core/memory_range.ts";
import { libc } from "../os/libc.ts";
import { F_DUPFD_CLOEXEC } from "../os/mman.ts";
import { Errno, OsError, unwrap } from "../os/os_error.ts";
import { abandon, Attachments, fileName, type Held } from "./attachments.ts";
import type { KvmCpuidEntry, KvmMsr } from "./cpuid_msrs.ts";
import type { KvmExit } from "./exits.ts";
import { ioctl, REQUEST } from "./ioctl.ts";
import { MP_STATE } from "./layout.ts";
import { unsigned } from "./numbers.ts";
import type { KvmFpu, KvmRegs, KvmSregs } from "./registers.ts";
import { RingReader, type SharedRing } from "./ring_reader.ts";
import { RING_FULL, RUN_AREA, RunPage } from "./run_page.ts";
import type { ThreadIdentity } from "../os/thread.ts";
import type { SharedVcpu, VcpuOwner } from "./shared_vcpu.ts";
import { checkVcpuState, cr8Of, type RestoreReport, UnfinishedExitError, type VcpuState } from "./state.ts";
import * as requests from "./vcpu_requests.ts";
import { readVcpu, writeVcpu } from "./vcpu_state.ts";

/** In how many parts an exit may have to be finished: an instruction has far fewer. */
const MAX_EXITS = 100;

/**
 * Makes a vCPU that takes over the descriptor of a new one, unless it throws: for `KvmVm.createVcpu`, and no export of the
 * package.
 */
export let ownVcpu: (fd: number, owner: VcpuOwner, ring: () => SharedRing | undefined) => KvmVcpu;

/** Whether a vCPU has been disposed. */
export let isDisposed: (vcpu: KvmVcpu) => boolean;

/** The threads that have attached to a vCPU, by what they have noted themselves. */
export let attachedThreads: (vcpu: KvmVcpu) => readonly ThreadIdentity[];

/**
 * A virtual processor of a `KvmVm`.
 *
 * `run` blocks the thread for as long as the guest stays inside, and so its event loop: a guest that does not come out
 * by itself belongs in a Worker. Make the vCPU where the VM is, hand it to the Worker by a `VcpuControl`, which can also
 * get it out of the guest, and run it there by a `VcpuRunner`. (`share`, `attach` and `kickThread` are what those two are
 * made of.)
 *
 * @example Handling exits
 * ```ts ignore
 * while (true) {
 *   const exit = vcpu.run();
 *   if (exit.kind === "io" && exit.direction === "out" && exit.port === 0x3f8) serial.write(exit.value);
 *   else if (exit.kind === "mmio" && !exit.isWrite) exit.value = device.read(exit.gpa, exit.length);
 *   else if (exit.kind === "hlt" || exit.kind === "shutdown") break;
 * }
 * ```
 */
export class KvmVcpu implements Disposable {
  /**
   * Whether the next `run` returns `"interrupted"` before it enters the guest, finishing an exit that is under way. May
   * be set from any thread that has the vCPU; stays set until it is cleared.
   */
  declare immediateExit: boolean;
  /** Whether `run` returns `"irq-window-open"` as soon as the guest can take an interrupt. */
  declare requestInterruptWindow: boolean;
  /** Whether `interrupt` would be delivered at once, as of the last exit. */
  declare readonly readyForInterrupt: boolean;
  /**
   * Whether the vCPU runs, halts or waits to be started: a `KvmMpState`.
   *
   * @throws {OsError} When it is set to a state that does not exist, or not without an interrupt controller.
   */
  declare mpState: number;

  #fd: number;
  #run: RunPage;
  #owner: VcpuOwner | undefined;
  #sharedRing: SharedRing | undefined;
  #ring: RingReader | undefined;
  #attachments: Attachments | undefined;
  #strike: (() => void) | undefined;
  #disposed = false;

  // What a class declares as a pair of accessors, `deno doc` does not show.
  static {
    ownVcpu = (fd, owner, ring) => new KvmVcpu(fd, owner, ring);
    isDisposed = (vcpu) => vcpu.#disposed;
    attachedThreads = (vcpu) => vcpu.#attachments?.threads ?? [];
    Object.defineProperties(this.prototype, {
      immediateExit: {
        get(this: KvmVcpu): boolean {
          return this.#page().immediateExit;
        },
        set(this: KvmVcpu, on: boolean) {
          this.#page().immediateExit = on;
        },
      },
      requestInterruptWindow: {
        get(this: KvmVcpu): boolean {
          return this.#page().requestInterruptWindow;
        },
        set(this: KvmVcpu, on: boolean) {
          this.#page().requestInterruptWindow = on;
        },
      },
      readyForInterrupt: {
        get(this: KvmVcpu): boolean {
          return this.#page().readyForInterrupt;
        },
      },
      mpState: {
        get(this: KvmVcpu): number {
          return requests.getMpState(this.#checked());
        },
        set(this: KvmVcpu, state: number) {
          requests.setMpState(this.#checked(), state);
        },
      },
    });
  }

  private constructor(fd: number, owner: VcpuOwner | undefined, ring: () => SharedRing | undefined) {
    this.#fd = fd;
    this.#owner = owner;
    using undo = new DisposableStack();
    this.#run = undo.use(new RunPage(fd));
    this.#sharedRing = ring();
    if (this.#sharedRing !== undefined) this.#ring = new RingReader(fd, this.#sharedRing);
    undo.move();
  }

  /**
   * Attaches to a vCPU that another thread of this process has shared. The descriptor is duplicated, so either side can
   * be disposed first; but the sharer must not be disposed before the other side has attached. Two threads must not
   * `run` one vCPU at a time: the second waits for the first, inside the kernel. So does attaching, and reading or
   * setting a register, while another thread runs it.
   *
   * Disposing the VM takes its memory away from the guest even while an attached vCPU runs. Where the attached thread is
   * terminated, what it had is given back when the vCPU is disposed or shared the next time, or another one made.
   *
   * @throws {OsError} If the descriptor is no vCPU's.
   * @throws {LimitError} If 64 threads are attached.
   */
  static attach(shared: SharedVcpu): KvmVcpu {
    const { fd: original, runSize, attachments, ring } = shared;
    unsigned(original, 31, "File descriptor");
    checkAligned(runSize, "Size of the shared area");
    if (runSize < RUN_AREA) throw new RangeError(`A vCPU shares at least ${RUN_AREA} bytes, not ${runSize}`);
    const table = attachments === undefined ? undefined : new Attachments(attachments);
    const { sys, errno } = libc();
    const fd = unwrap(sys.fcntl(original, F_DUPFD_CLOEXEC, 0), errno[0], "fcntl", () => `vCPU ${original}`);
    try {
      // Fails for everything that is no vCPU.
      ioctl(fd, "KVM_GET_MP_STATE", new Uint8Array(MP_STATE.size), () => `file descriptor ${original} is no vCPU`);
      using undo = new DisposableStack();
      const vcpu = new KvmVcpu(fd, undefined, () => ring);
      undo.defer(() => vcpu.#unmap());
      if (table !== undefined) vcpu.#strike = table.noteAll(vcpu.#held);
      undo.move();
      return vcpu;
    } catch (error) {
      sys.close(fd);
      throw error;
    }
  }

  /** What `attach` needs in another thread. Keep this object until the other side has attached. */
  share(): SharedVcpu {
    const fd = this.#checked();
    this.#owner?.shared();
    const attachments = this.#attachments ??= new Attachments();
    const ring = this.#sharedRing;
    const vm: readonly Held[] = ring === undefined ? [] : [{ fd: ring.vm, address: -1, length: 0 }];
    attachments.reap(this.#names, [...this.#held, ...vm]);
    return { fd, runSize: RUN_AREA, attachments: attachments.buffer, ...(ring === undefined ? {} : { ring }) };
  }

  /**
   * Runs the guest until it needs the VMM. Blocks the thread. A ring of written pages that is full is harvested on the
   * way, and the guest goes on.
   *
   * The result is overwritten by the next `run`. For an `"in"` or a reading `"mmio"` exit, set `value` or fill `data`
   * before it.
   *
   * @throws {OsError} If KVM reports a failure that is not an exit.
   */
  run(): KvmExit {
    const fd = this.#checked();
    const { sys, errno } = libc();
    while (true) {
      // SAFETY: KVM_RUN takes no argument; the guest reaches the memory of its slots only. Not repeated on EINTR, which
      // is how a thread is got out of the guest.
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
   * Injects an external interrupt, 0 to 255. For VMs without an in-kernel interrupt controller.
   *
   * @throws {OsError} ENXIO if there is an in-kernel controller, EEXIST if an interrupt is pending already.
   */
  interrupt(vector: number): void {
    requests.interrupt(this.#checked(), vector);
  }

  /** Reads the general registers. */
  getRegs(): KvmRegs {
    return requests.getRegs(this.#checked());
  }

  /** Sets the general registers that are given; the others keep their values. */
  setRegs(regs: Partial<KvmRegs>): void {
    requests.setRegs(this.#checked(), regs);
  }

  /** Reads the special registers. */
  getSregs(): KvmSregs {
    return requests.getSregs(this.#checked());
  }

  /**
   * Sets the special registers that are given; the others keep their values.
   *
   * @throws {OsError} EINVAL if they contradict each other.
   */
  setSregs(sregs: Partial<KvmSregs>): void {
    requests.setSregs(this.#checked(), sregs);
  }

  /** Reads the x87 and SSE registers. */
  getFpu(): KvmFpu {
    return requests.getFpu(this.#checked());
  }

  /** Sets the x87 and SSE registers. */
  setFpu(fpu: KvmFpu): void {
    requests.setFpu(this.#checked(), fpu);
  }

  /**
   * Reads model-specific registers.
   *
   * @throws {RangeError} If KVM does not know one of them; the message says which.
   */
  getMsrs(indices: readonly number[]): KvmMsr[] {
    return requests.getMsrs(this.#checked(), indices);
  }

  /**
   * Sets model-specific registers, in order.
   *
   * @throws {RangeError} If KVM refuses one; the message says which. Those before it are set.
   */
  setMsrs(msrs: readonly KvmMsr[]): void {
    requests.setMsrs(this.#checked(), msrs);
  }

  /** Sets what the CPUID instruction says, most often `Kvm.getSupportedCpuid()` with changes. */
  setCpuid2(entries: readonly KvmCpuidEntry[]): void {
    requests.setCpuid2(this.#checked(), entries);
  }

  /**
   * The whole state of the vCPU as plain data: registers of all kinds, what is under way, its interrupt controller. An
   * exit under way is finished first, so answer it before: `"in"` and reading `"mmio"` exits need their data. Hold the
   * vCPU out of the guest meanwhile; this waits while another thread runs it.
   *
   * @throws {UnfinishedExitError} If finishing the exit led to another one, which has to be handled first.
   *
   * @example Saving and restoring
   * ```ts ignore
   * const saved = { vcpu: vcpu.saveState(), vm: vm.saveState() };
   * // ... in another VM with the same memory
   * const { msrsNotTaken } = other.restoreState(saved.vcpu);
   * otherVm.restoreState(saved.vm);
   * ```
   */
  saveState(): VcpuState {
    const fd = this.#checked();
    const exit = this.#finishExit();
    if (exit !== undefined) throw new UnfinishedExitError(exit);
    return readVcpu(fd);
  }

  /**
   * Makes this vCPU what another one, or this one at another time, was when `saveState` was called. An exit that is under
   * way here is finished first, which may write guest memory: restore memory after the vCPUs, where both are restored.
   *
   * @returns The model-specific registers that did not take.
   * @throws {StateError} If it is no state of a vCPU, or does not fit this one; nothing has changed then.
   * @throws {OsError} If KVM refuses a part; restore it again or dispose the vCPU then.
   */
  restoreState(state: VcpuState): RestoreReport {
    const fd = this.#checked();
    const checked = checkVcpuState(state);
    for (let exit = this.#finishExit(), more = MAX_EXITS; exit !== undefined; exit = this.#finishExit()) {
      if (--more === 0) throw new UnfinishedExitError(exit);
    }
    const report = writeVcpu(fd, checked);
    this.#run.cr8 = cr8Of(checked);
    return report;
  }

  /** Closes the vCPU. The `data` of an earlier exit is empty afterwards. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#strike?.();
    const names = this.#attachments === undefined ? [] : this.#names;
    libc().sys.close(this.#fd);
    this.#owner?.gone(this);
    this.#unmap();
    if (this.#attachments !== undefined) abandon(this.#attachments, names);
  }

  /** Finishes an exit that is under way, without entering the guest. Returns the exit that led to, if there is one. */
  #finishExit(): KvmExit | undefined {
    const page = this.#run;
    const wish = page.immediateExit;
    page.immediateExit = true;
    try {
      const exit = this.run();
      return exit.kind === "interrupted" ? undefined : exit;
    } finally {
      page.immediateExit = wish;
    }
  }

  #unmap(): void {
    this.#ring?.[Symbol.dispose]();
    this.#run[Symbol.dispose]();
  }

  /** What the kernel calls the files that attaching opens and maps. */
  get #names(): readonly string[] {
    return [this.#fd, ...this.#ring === undefined ? [] : [this.#ring.held.fd]].map(fileName);
  }

  get #held(): readonly Held[] {
    const page: Held = { fd: this.#fd, address: this.#run.address, length: RUN_AREA };
    return this.#ring === undefined ? [page] : [page, this.#ring.held];
  }

  #checked(): number {
    if (this.#disposed) throw new DisposedError("vCPU");
    if (this.#owner?.disposed) {
      throw new DisposedError("vCPU", `belongs to ${this.#owner.name}, which has been disposed`);
    }
    return this.#fd;
  }

  // What the page says stays of use when the VM is gone: the guest may be running in another thread.
  #page(): RunPage {
    if (this.#disposed) throw new DisposedError("vCPU");
    return this.#run;
  }
}
