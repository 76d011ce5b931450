/**
 * The machine: a KVM virtual machine of one vCPU, its memory in this thread, its vCPU and devices in another.
 *
 * @module
 */

import { Mappable, OsError } from "membacking";
import { Kvm, type KvmVm, quiesceVcpus, type VcpuControl } from "membacking/kvm";
import type { Request } from "./chipset_memory.ts";
import { floppyFile } from "./floppy.ts";
import type { FwCfgFile } from "./fw_cfg.ts";
import { MachineMemory } from "./memory.ts";
import type { BootEnd } from "./protocol.ts";
import { SetupError } from "../pc/setup_error.ts";
import { type SlotChanges, SlotLog, timed } from "../pc/slot_log.ts";
import { type VcpuEvent, VcpuThread } from "./vcpu_thread.ts";

/** Where Debian's package seabios has it. */
export const FIRMWARE = "/usr/share/seabios/bios-256k.bin";
/** RAM when nothing else is said, in bytes. */
export const RAM = 0x800_0000;

const FOUR_GIB = 0x1_0000_0000;
const ROM_UNIT = 0x1_0000;
const LEAST_ROM = 0x2_0000; // what is below 1 MiB
const MOST_ROM = 0x80_0000;

/** A change of the memory. */
export interface MemoryChange extends Request {
  /** The memory slots that went and came. */
  readonly slots: SlotChanges;
  /** How long the request took, in microseconds, the way to the other thread and back included. */
  readonly micros: number;
}

/** Is told what happens, as it happens. */
export interface MachineEvents {
  /** The firmware wrote a line of its log. */
  readonly onLog: (line: string) => void;
  /** The boot sector wrote a line. */
  readonly onFinding: (line: string) => void;
  /** The memory has changed. */
  readonly onChange: (change: MemoryChange) => void;
  /** Memory is not as the guest wanted it: a BAR is where it was. */
  readonly onRefused: (why: string) => void;
}

/** What a machine is made of. */
export interface MachineOptions {
  /** The firmware's file; `FIRMWARE` when left out. */
  readonly firmware?: string;
  /** The image of a floppy to boot from; none when left out. */
  readonly floppy?: Uint8Array;
  /** The device of KVM; /dev/kvm when left out. */
  readonly kvm?: string;
  /** Who wants to know. */
  readonly events: MachineEvents;
}

/** A machine, and the thread of its vCPU once it has been switched on. */
export class Machine implements Disposable {
  /** Its memory. */
  readonly memory: MachineMemory;
  readonly #kvm: Kvm;
  readonly #vm: KvmVm;
  readonly #vcpus = new Set<VcpuControl>();
  readonly #slots: SlotLog;
  readonly #request = new Int32Array(new SharedArrayBuffer(4));
  readonly #events: MachineEvents;
  readonly #files: readonly FwCfgFile[];
  readonly #resources: DisposableStack;

  /**
   * Builds it, with the memory as it is at power-on.
   *
   * @throws {SetupError | OsError} If there is no firmware or no KVM, or the floppy has another size; the message says
   * what to do.
   */
  constructor({ firmware = FIRMWARE, floppy, kvm, events }: MachineOptions) {
    this.#events = events;
    this.#files = floppy === undefined ? [] : [floppyFile(floppy)];
    using stack = new DisposableStack();
    using rom = openFirmware(firmware);
    this.#kvm = stack.use(Kvm.open(kvm));
    this.#vm = stack.use(this.#kvm.createVm({ zapAllOnSlotDelete: false }));
    // Pages that KVM keeps for itself on some processors, where neither ROM nor memory is.
    this.#vm.setIdentityMapAddress(FOUR_GIB - rom.size - 0x4000);
    this.#vm.setTssAddress(FOUR_GIB - rom.size - 0x3000);
    this.#vm.createIrqchip();
    this.#vm.createPit2();
    this.memory = stack.use(new MachineMemory({ ram: RAM, rom, quiesce: quiesceVcpus(this.#vcpus) }));
    this.#slots = new SlotLog(this.#vm, () => Atomics.load(this.#request, 0));
    const micros = timed(() => this.memory.guest.attachPartition(this.#slots));
    events.onChange({ cause: "power-on", effects: [], slots: this.#slots.take(0), micros });
    this.#resources = stack.move();
  }

  /**
   * Switches it on, once. The result is there as soon as the firmware has nothing left to try, or the guest has crashed,
   * or `signal` aborts, which gets the vCPU out of the guest; the memory stays as it is then.
   */
  async boot(signal?: AbortSignal): Promise<BootEnd> {
    const resources = this.#resources;
    const vcpu = resources.use(this.#vm.createVcpu(0));
    vcpu.setCpuid2(this.#kvm.getSupportedCpuid());
    const thread = resources.use(new VcpuThread(vcpu));
    this.#vcpus.add(thread.control);
    const { port1, port2 } = new MessageChannel();
    resources.use(this.memory.guest.regions.serve(port1));
    const kick = () => thread.control.kick();
    signal?.addEventListener("abort", kick);
    if (signal?.aborted) kick();
    try {
      const { start, end } = this.memory.bus;
      const { buffer: request } = this.#request;
      const job = { regions: port2, request, ram: RAM, bus: [start, end] as const, files: this.#files };
      return await thread.run(job, (event) => this.#tell(event));
    } finally {
      signal?.removeEventListener("abort", kick);
    }
  }

  /** Switches it off and takes it apart. */
  [Symbol.dispose](): void {
    this.#resources[Symbol.dispose]();
  }

  #tell(event: VcpuEvent): void {
    switch (event.kind) {
      case "log":
        return this.#events.onLog(event.line);
      case "finding":
        return this.#events.onFinding(event.line);
      case "refused":
        return this.#events.onRefused(event.error);
      case "request": {
        const { request, number, micros } = event;
        return this.#events.onChange({ ...request, slots: this.#slots.take(number), micros });
      }
    }
  }
}

/** The file, which becomes memory as it is: nothing is copied. */
function openFirmware(path: string): Mappable {
  let rom: Mappable;
  try {
    rom = Mappable.open(path);
  } catch (cause) {
    if (!(cause instanceof OsError)) throw cause;
    throw new SetupError(
      `Cannot open the firmware "${path}" (${cause.code}): install the package that has it with ` +
        `"apt-get install seabios", or name another file with --firmware FILE`,
      { cause },
    );
  }
  const { size } = rom;
  if (size >= LEAST_ROM && size <= MOST_ROM && size % ROM_UNIT === 0) return rom;
  rom[Symbol.dispose]();
  throw new SetupError(
    `The firmware "${path}" has ${size} bytes, which is no ROM of a PC: a multiple of 64 KiB from 128 KiB to 8 MiB is`,
  );
}
