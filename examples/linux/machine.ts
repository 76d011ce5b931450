/**
 * The machine: a KVM virtual machine of several vCPUs, each in a thread of its own; memory and devices in this one.
 *
 * @module
 */

import { Kvm, type KvmVm, quiesceVcpus, type VcpuControl } from "membacking/kvm";
import type { Crash } from "../pc/crash.ts";
import { type SlotChanges, SlotLog } from "../pc/slot_log.ts";
import { acpiTables } from "./acpi.ts";
import { Board } from "./board.ts";
import { loadLinux } from "./boot_protocol.ts";
import { cpuidOf } from "./cpuid.ts";
import { readElf } from "./elf.ts";
import { LinuxMemory, ROM, VIRTIO_WINDOW } from "./memory.ts";
import type { ExitCounts } from "./protocol.ts";
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

/** What a machine is made of. */
export interface LinuxOptions {
  /** A folder with the kernel and its first file system, as `prepareLinux` makes it. */
  readonly folder: string;
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
  readonly #threads: VcpuThread[] = [];
  readonly #slots: SlotLog;
  readonly #setup: LinuxOptions;
  readonly #resources: DisposableStack;
  #why: LinuxEnd["why"] = "stopped";

  /**
   * Builds it, with the kernel in memory.
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
    this.memory = stack.use(new LinuxMemory({ below, above, quiesce: quiesceVcpus(this.#controls) }));
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

  /** Switches it on, once, and lets it run to its end. */
  async run(): Promise<LinuxEnd> {
    const { vcpus: count = 2 } = this.#setup;
    const supported = this.#kvm.getSupportedCpuid();
    const { regs, sregs } = this.#load(count);
    for (let id = 0; id < count; id++) {
      const vcpu = this.#resources.use(this.vm.createVcpu(id));
      vcpu.setCpuid2(cpuidOf(supported, id, count));
      // The others wait until the first one wakes them.
      if (id === 0) {
        vcpu.setSregs(sregs);
        vcpu.setRegs(regs);
      }
      const thread = this.#resources.use(new VcpuThread(vcpu));
      this.#threads.push(thread);
      this.#controls.add(thread.control);
    }
    let crash: Crash | null = null;
    const start = performance.now();
    const ends = await Promise.all(this.#threads.map(async (thread) => {
      try {
        const end = await thread.run((access) => this.#board.answer(access));
        if (end.why === "failed") throw end.error;
        if (end.why === "crashed") crash ??= end.crash;
        return end.exits;
      } finally {
        // One that ends for itself ends them all.
        this.#end(crash === null ? this.#why : "crashed");
      }
    }));
    return { why: this.#why, crash, exits: ends, millis: performance.now() - start };
  }

  /** Ends the run. */
  stop(): void {
    this.#end("stopped");
  }

  /** Switches it off and takes it apart. */
  [Symbol.dispose](): void {
    this.#resources[Symbol.dispose]();
  }

  #load(vcpus: number): ReturnType<typeof loadLinux> {
    const { folder, below = 192 * MIB } = this.#setup;
    const { rsdp, bytes } = acpiTables({ gpa: ROM.start, vcpus, devices: this.#virtio });
    this.memory.burn(bytes);
    return loadLinux(this.memory.guest.memory, {
      kernel: readElf(Deno.readFileSync(`${folder}/vmlinux`)),
      header: Deno.readFileSync(`${folder}/header`),
      initramfs: Deno.readFileSync(`${folder}/initramfs`),
      ramEnd: below,
      commandLine: COMMAND_LINE,
      memory: this.memory.kinds,
      rsdp,
    });
  }

  #end(why: LinuxEnd["why"]): void {
    this.#why = why;
    for (const control of this.#controls) control.kick();
  }
}
