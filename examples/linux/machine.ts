/**
 * The machine: a KVM virtual machine of several vCPUs, each in a thread of its own; memory and devices in this one.
 *
 * @module
 */

import type { GuestMemoryManager, Quiesce } from "membacking";
import {
  Kvm,
  type KvmVcpu,
  type KvmVm,
  quiesceVcpus,
  type VcpuControl,
  type VcpuState,
  type VmState,
} from "membacking/kvm";
import type { Crash } from "../pc/crash.ts";
import { type SlotChanges, SlotLog } from "../pc/slot_log.ts";
import { acpiTables } from "./acpi.ts";
import { Board } from "./board.ts";
import { loadLinux } from "./boot_protocol.ts";
import { cpuidOf } from "./cpuid.ts";
import { readElf } from "./elf.ts";
import { LinuxMemory, newRam, ROM, VIRTIO_WINDOW } from "./memory.ts";
import type { ExitCounts } from "./protocol.ts";
import type { UartState } from "./uart.ts";
import { VcpuThread } from "./vcpu_thread.ts";
import type { VirtioDevice } from "./virtio/device.ts";
import { VirtioMmio } from "./virtio/mmio_transport.ts";

const MIB = 0x10_0000;
/** Interrupts that no device of a PC has: the upper pins of the I/O APIC. */
const FIRST_VIRTIO_IRQ = 16;
const VIRTIO_STRIDE = 0x1000;

/**
 * The console, and no waiting: for a keyboard, PCI or a clock that are not there, or at a panic. The memory that is
 * added later does not become the kernel's by itself in Debian; here it does.
 */
const COMMAND_LINE = "console=ttyS0 quiet panic=-1 pci=off nokaslr mitigations=off random.trust_cpu=on " +
  "no_timer_check tsc=reliable swiotlb=noforce memhp_default_state=online_movable";

/** What a machine begins with: a kernel, or what another machine was at one moment. */
export type Beginning =
  /** A folder with the kernel and its first file system, as `prepareLinux` makes it. */
  | { readonly folder: string }
  /** RAM, to be made with a hook that holds the vCPUs, and everything else. */
  | { readonly ram: (quiesce: Quiesce) => GuestMemoryManager; readonly state: LinuxState };

/** What a machine is made of. */
export interface LinuxOptions {
  /** What it begins with. */
  readonly from: Beginning;
  /** How many processors it has; 2 when left out. */
  readonly vcpus?: number;
  /** The RAM below the hole, in bytes; 192 MiB when left out. */
  readonly below?: number;
  /** The RAM above 4 GiB, in bytes; 64 MiB when left out. */
  readonly above?: number;
  /** Its virtio devices, by the memory they are for; at most eight, none when left out. */
  readonly devices?: (memory: LinuxMemory) => readonly VirtioDevice[];
  /** Is told what a driver of a virtio device did wrong. */
  readonly onBroken?: (error: unknown) => void;
  /** Is told of accesses to addresses at which there is nothing, or ROM that Linux wants to write. */
  readonly onStray?: (gpa: number, isWrite: boolean) => void;
  /** Is told each byte that Linux writes to its console. */
  readonly onByte: (byte: number) => void;
}

/** How it ended. */
export interface LinuxEnd {
  /** `"off"` and `"reset"`: the guest wanted it. `"stopped"`: somebody here did. */
  readonly why: "off" | "reset" | "stopped" | "crashed";
  /** What the vCPU that crashed was doing. */
  readonly crash: Crash | null;
  /** How often each vCPU left the guest. */
  readonly exits: readonly ExitCounts[];
  /** How long it ran, in milliseconds. */
  readonly millis: number;
}

/** What a machine is at one moment, besides its memory and its virtio devices. */
export interface LinuxState {
  /** The virtual machine. */
  readonly vm: VmState;
  /** Its vCPUs. */
  readonly vcpus: readonly VcpuState[];
  /** Its serial port. */
  readonly uart: UartState;
}

/** A machine that boots Linux. */
export class LinuxMachine implements Disposable {
  /** Its memory. */
  readonly memory: LinuxMemory;
  /** Its virtual machine. */
  readonly vm: KvmVm;
  readonly #kvm: Kvm;
  readonly #board: Board;
  readonly #virtio: readonly VirtioMmio[];
  readonly #controls = new Set<VcpuControl>();
  readonly #vcpus: readonly KvmVcpu[];
  readonly #slots: SlotLog;
  readonly #setup: LinuxOptions;
  readonly #resources: DisposableStack;
  #why: LinuxEnd["why"] = "stopped";
  #vcpuStates: readonly VcpuState[] | null = null;

  /**
   * Builds it, with the kernel or what the other machine had in memory.
   *
   * @throws {OsError} If there is no KVM.
   */
  constructor(setup: LinuxOptions) {
    using stack = new DisposableStack();
    this.#setup = setup;
    const { below = 192 * MIB, above = 64 * MIB, onByte } = setup;
    this.#kvm = stack.use(Kvm.open());
    this.vm = stack.use(this.#kvm.createVm({ zapAllOnSlotDelete: false }));
    // Pages that KVM keeps for itself on some processors, where neither ROM nor memory is.
    this.vm.setIdentityMapAddress(0xfeff_c000);
    this.vm.setTssAddress(0xfeff_d000);
    this.vm.createIrqchip();
    this.vm.createPit2();
    const quiesce = quiesceVcpus(this.#controls);
    const { from, vcpus = 2 } = setup;
    this.memory = stack.use(new LinuxMemory("folder" in from ? newRam({ below, above, quiesce }) : from.ram(quiesce)));
    this.#slots = new SlotLog(this.vm, () => 0);
    this.memory.guest.attachPartition(this.#slots);
    const setIrq = (irq: number, level: boolean) => this.vm.irqLine(irq, level);
    this.#virtio = (setup.devices?.(this.memory) ?? []).map((device, i) => {
      const irq = FIRST_VIRTIO_IRQ + i;
      return new VirtioMmio(device, {
        gpa: VIRTIO_WINDOW.start + i * VIRTIO_STRIDE,
        irq,
        memory: this.memory.guest.memory,
        setIrq: (level) => setIrq(irq, level),
        onBroken: setup.onBroken ?? (() => {}),
      });
    });
    this.#board = new Board({
      ram: below,
      onByte,
      setIrq,
      onOff: (why) => this.#end(why),
      onStray: setup.onStray ?? (() => {}),
      devices: this.#virtio,
    });
    const supported = this.#kvm.getSupportedCpuid();
    this.#vcpus = Array.from({ length: vcpus }, (_, id) => {
      const vcpu = stack.use(this.vm.createVcpu(id));
      vcpu.setCpuid2(cpuidOf(supported, id, vcpus));
      return vcpu;
    });
    const { rsdp, bytes } = acpiTables({ gpa: ROM.start, vcpus, devices: this.#virtio });
    this.memory.burn(bytes);
    if ("folder" in from) this.#load(from.folder, rsdp);
    else this.#restore(from.state);
    this.#resources = stack.move();
  }

  /** What happened to the memory slots since the last call. */
  takeSlotChanges(): SlotChanges {
    return this.#slots.take(0);
  }

  /** Types something on the console. */
  type(text: string): void {
    this.#board.uart.type(new TextEncoder().encode(text));
  }

  /** Lets it run, to its end or until it is stopped; then it can go on from where it was. */
  async run(): Promise<LinuxEnd> {
    using threads = new DisposableStack();
    this.#why = "stopped";
    this.#vcpuStates = null;
    const running = this.#vcpus.map((vcpu) => {
      const thread = threads.use(new VcpuThread(vcpu));
      this.#controls.add(thread.control);
      threads.defer(() => this.#controls.delete(thread.control));
      return thread;
    });
    let crash: Crash | null = null;
    const start = performance.now();
    const ends = await Promise.all(running.map(async (thread) => {
      try {
        const end = await thread.run((access) => this.#board.answer(access));
        if (end.why === "failed") throw end.error;
        if (end.why === "crashed") crash ??= end.crash;
        return end;
      } finally {
        // One that ends for itself ends them all.
        this.#end(crash === null ? this.#why : "crashed");
      }
    }));
    const millis = performance.now() - start;
    if (this.#why === "stopped") this.#vcpuStates = ends.flatMap((end) => end.why === "kicked" ? [end.state] : []);
    return { why: this.#why, crash, exits: ends.map(({ exits }) => exits), millis };
  }

  /** What it is now, after it was stopped. The same moment of its memory is the caller's to keep. */
  saveState(): LinuxState {
    if (this.#vcpuStates === null) throw new Error("Only a machine that was stopped can be saved");
    return { vm: this.vm.saveState(), vcpus: this.#vcpuStates, uart: this.#board.uart.saveState() };
  }

  /** Ends the run. */
  stop(): void {
    this.#end("stopped");
  }

  /** Switches it off and takes it apart. */
  [Symbol.dispose](): void {
    this.#resources[Symbol.dispose]();
  }

  #load(folder: string, rsdp: number): void {
    const { below = 192 * MIB } = this.#setup;
    const { regs, sregs } = loadLinux(this.memory.guest.memory, {
      kernel: readElf(Deno.readFileSync(`${folder}/vmlinux`)),
      header: Deno.readFileSync(`${folder}/header`),
      initramfs: Deno.readFileSync(`${folder}/initramfs`),
      ramEnd: below,
      commandLine: COMMAND_LINE,
      memory: this.memory.kinds,
      rsdp,
    });
    // The others wait until the first one wakes them.
    this.#vcpus[0]?.setSregs(sregs);
    this.#vcpus[0]?.setRegs(regs);
  }

  #restore({ vm, vcpus, uart }: LinuxState): void {
    if (vcpus.length !== this.#vcpus.length) throw new RangeError(`The state is of a machine of ${vcpus.length} vCPUs`);
    this.#vcpus.forEach((vcpu, i) => {
      const state = vcpus[i];
      if (state !== undefined) vcpu.restoreState(state);
    });
    this.vm.restoreState(vm);
    this.#board.uart.restoreState(uart);
  }

  #end(why: LinuxEnd["why"]): void {
    this.#why = why;
    for (const control of this.#controls) control.kick();
  }
}
