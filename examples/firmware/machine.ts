/**
 * The machine: a KVM virtual machine of one vCPU, its memory in this thread, its vCPU and devices in another.
 *
 * @module
 */

import { Mappable, MemoryRange, OsError } from "membacking";
import { Kvm, type KvmVm } from "membacking/kvm";
import { floppyFile } from "./floppy.ts";
import type { FwCfgFile } from "./fw_cfg.ts";
import { MachineMemory, type MemoryChange } from "./memory.ts";
import type { BootEnd, VcpuJob, VcpuMessage } from "./protocol.ts";
import { answer, newMailbox } from "./remote_memory.ts";
import { SetupError } from "./setup_error.ts";

/** Where Debian's package seabios has it. */
export const FIRMWARE = "/usr/share/seabios/bios-256k.bin";
/** RAM when nothing else is said, in bytes. */
export const RAM = 0x800_0000;

const FOUR_GIB = 0x1_0000_0000;
const ROM_UNIT = 0x1_0000;
const LEAST_ROM = 0x2_0000; // what is below 1 MiB
const MOST_ROM = 0x80_0000;

/** Is told what happens, as it happens. */
export interface MachineEvents {
  /** The firmware wrote a line of its log. */
  readonly onLog: (line: string) => void;
  /** The boot sector wrote a line. */
  readonly onFinding: (line: string) => void;
  /** The memory has changed. */
  readonly onChange: (change: MemoryChange) => void;
  /** A BAR is not where the guest wanted it. */
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

/** A machine that has not been started. */
export class Machine implements Disposable {
  /** Its memory. */
  readonly memory: MachineMemory;
  readonly #kvm: Kvm;
  readonly #vm: KvmVm;
  readonly #events: MachineEvents;
  readonly #files: readonly FwCfgFile[];
  readonly #resources: DisposableStack;

  /**
   * Builds it, with the memory as it is at power-on.
   *
   * @throws {SetupError | OsError} If there is no firmware or no KVM, or the floppy has another size; the message says what to do.
   */
  constructor(options: MachineOptions) {
    this.#events = options.events;
    this.#files = options.floppy === undefined ? [] : [floppyFile(options.floppy)];
    using stack = new DisposableStack();
    const rom = stack.use(openFirmware(options.firmware ?? FIRMWARE));
    this.#kvm = stack.use(Kvm.open(options.kvm));
    this.#vm = stack.use(this.#kvm.createVm({ name: "guest", zapAllOnSlotDelete: false }));
    // Pages that KVM keeps for itself on some processors, where neither ROM nor memory is.
    this.#vm.setIdentityMapAddress(FOUR_GIB - rom.size - 0x4000);
    this.#vm.setTssAddress(FOUR_GIB - rom.size - 0x3000);
    this.#vm.createIrqchip();
    this.#vm.createPit2();
    this.memory = stack.use(
      new MachineMemory({ ram: RAM, rom, quiesce: () => QUIET, onChange: (change) => options.events.onChange(change) }),
    );
    this.memory.attach(this.#vm);
    this.#resources = stack.move();
  }

  /** Switches it on. The result is there once the firmware has nothing left to try, or the guest has crashed. */
  async boot(): Promise<BootEnd> {
    const events = this.#events;
    using vcpu = this.#vm.createVcpu(0);
    vcpu.setCpuid2(this.#kvm.getSupportedCpuid());
    const worker = new Worker(new URL("./vcpu_worker.ts", import.meta.url), { type: "module" });
    const mailbox = newMailbox();
    const { promise: end, resolve, reject } = Promise.withResolvers<BootEnd>();
    worker.onerror = (event) => {
      event.preventDefault();
      // It has not even been loaded: what fails in it later comes as a message.
      reject(new SetupError(`The thread of the vCPU cannot start: ${event.message}`));
    };
    worker.onmessage = ({ data }: MessageEvent<VcpuMessage>) => {
      switch (data.kind) {
        case "visibility": {
          const changes = data.changes.map(({ start, end, to }) => ({ range: new MemoryRange(start, end), to }));
          return answer(mailbox, () => this.memory.setVisibility(changes, data.cause));
        }
        case "bar":
          return answer(mailbox, () => this.memory.placeBar(data.bar, data.gpa, data.cause));
        case "log":
          return events.onLog(data.line);
        case "finding":
          return events.onFinding(data.line);
        case "refused":
          return events.onRefused(data.why);
        case "end":
          return resolve(data.end);
        case "failed":
          return reject(data.error);
      }
    };
    const job: VcpuJob = {
      vcpu: vcpu.share(),
      mailbox,
      ram: RAM,
      bus: [this.memory.bus.start, this.memory.bus.end],
      files: this.#files,
    };
    try {
      worker.postMessage(job);
      return await end;
    } finally {
      worker.terminate();
    }
  }

  /** Takes it apart. */
  [Symbol.dispose](): void {
    this.#resources[Symbol.dispose]();
  }
}

/** Nothing has to be held: all requests come from the vCPU itself, which waits for them outside the guest. */
const QUIET: Disposable = { [Symbol.dispose]() {} };

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
