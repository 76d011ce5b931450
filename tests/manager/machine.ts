/**
 * A real VM whose memory a `GuestMemoryManager` runs, and a guest that says what it sees.
 *
 * @module
 */

import { GuestMemoryManager, type GuestMemoryOptions } from "membacking";
import { Kvm, type KvmVcpu, type KvmVm } from "membacking/kvm";
import { RealModeCode, startRealMode } from "../support/guest.ts";

const REPORT_PORT = 0x10;

/** The value that reads of addresses without memory are answered with. */
export const NOTHING = 0xffff_ffff;

/** What became of a guest's access. */
export interface Access {
  /** What it read, for a read. */
  readonly value: number;
  /** The GPAs at which it left the guest, with `w` for a write and `r` for a read. */
  readonly exits: string[];
}

/** A VM with the memory of `guest`, and a vCPU that runs a few real-mode instructions at a time from `code`. */
export class Machine implements Disposable {
  readonly guest: GuestMemoryManager;
  readonly vm: KvmVm;
  readonly vcpu: KvmVcpu;
  readonly #code: number;
  readonly #stack: DisposableStack;

  constructor(options: GuestMemoryOptions, code = 0x1000, attach: { aliasOffset?: number } = {}) {
    using stack = new DisposableStack();
    using kvm = Kvm.open();
    this.vm = stack.use(kvm.createVm());
    this.vcpu = stack.use(this.vm.createVcpu(0));
    this.guest = stack.use(GuestMemoryManager.create(options));
    stack.use(this.guest.attachPartition(this.vm, attach));
    this.#code = code;
    this.#stack = stack.move();
  }

  /** Lets the guest read four bytes. */
  read(gpa: number): Access {
    return this.#run(new RealModeCode().load(gpa, 4).out(REPORT_PORT, 4).halt());
  }

  /** Lets the guest write four bytes. */
  write(gpa: number, value: number): Access {
    return this.#run(new RealModeCode().set(value).store(gpa, 4).halt());
  }

  #run(code: RealModeCode): Access {
    this.guest.memory.write(this.#code, code.bytes());
    startRealMode(this.vcpu, this.#code);
    let value = 0;
    const exits: string[] = [];
    while (true) {
      const exit = this.vcpu.run();
      if (exit.kind === "hlt") return { value, exits };
      if (exit.kind === "io" && exit.port === REPORT_PORT) {
        value = new DataView(exit.data.buffer, exit.data.byteOffset).getUint32(0, true);
      } else if (exit.kind === "mmio") {
        exits.push(`0x${exit.gpa.toString(16)} ${exit.isWrite ? "w" : "r"}`);
        if (!exit.isWrite) exit.data.fill(0xff);
      } else {
        throw new Error(`The guest came out with ${exit.kind}`);
      }
    }
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}
