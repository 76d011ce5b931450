/**
 * Virtual machines for tests: memory, one vCPU, and something to run on it.
 *
 * @module
 */

import { Mappable } from "../../ffi/files/mappable.ts";
import { HostAddresses } from "../../ffi/host/host_addresses.ts";
import { MemoryRange } from "../../src/core/memory_range.ts";
import { type CreateVmOptions, Kvm, type KvmExit, type KvmVcpu, type KvmVm } from "membacking/kvm";
import { startLongMode, startRealMode, STOP_PORT } from "../../examples/guest/mod.ts";

export * from "../../examples/guest/mod.ts";

/** Where a `TestMachine` keeps the long-mode page tables. */
export const TABLES_AT = 0x1_0000;
/** Where a `TestMachine` puts programs. */
export const CODE_AT = 0x1000;

/** What a `TestMachine` is made with. */
export interface TestMachineOptions {
  /** The length of its memory in bytes; 16 MiB when left out. */
  memory?: number;
  /** The length of the reservation in bytes; 4 GiB when left out. */
  reserve?: number;
  /** How its VM is made. */
  vm?: CreateVmOptions;
}

/**
 * A VM with memory from address 0 on and one vCPU, without a region manager: for testing what is below that. Disposes
 * everything it has.
 */
export class TestMachine implements Disposable {
  readonly kvm: Kvm;
  readonly vm: KvmVm;
  readonly vcpu: KvmVcpu;
  readonly va: HostAddresses;
  readonly ram: Mappable;
  #stack = new DisposableStack();

  constructor(options: TestMachineOptions = {}) {
    const { memory = 2 ** 24, reserve = 2 ** 32, vm } = options;
    using undo = new DisposableStack();
    this.va = undo.use(HostAddresses.reserve(reserve));
    this.ram = undo.use(Mappable.memfd("ram", memory));
    this.kvm = undo.use(Kvm.open());
    this.vm = undo.use(this.kvm.createVm(vm));
    this.vcpu = undo.use(this.vm.createVcpu(0));
    this.vcpu.setCpuid2(this.kvm.getSupportedCpuid());
    this.va.map(0, memory, this.ram, 0, true, undefined);
    this.show(0, memory);
    this.#stack = undo.move();
  }

  /** Makes a slot for `[start, end)`. */
  show(start: number, end: number, writable = true): void {
    this.vm.mapRange(this.va.base + start, new MemoryRange(start, end), { writable, executable: true });
  }

  /** Makes the vCPU begin with `program` in real mode. */
  realMode(program: Uint8Array): void {
    this.ram.write(CODE_AT, program);
    startRealMode(this.vcpu, CODE_AT);
  }

  /** Makes the vCPU begin with `program` in long mode; it can address its memory and `more`. */
  longMode(program: Uint8Array, more: readonly { start: number; end: number; pageSize?: 0x1000 }[] = []): void {
    startLongMode(this.vcpu, {
      write: (gpa, bytes) => this.ram.write(gpa, bytes),
      tables: TABLES_AT,
      code: CODE_AT,
      program,
      ranges: [{ start: 0, end: this.ram.size }, ...more],
    });
  }

  /**
   * Runs until the guest halts or writes the stop port, handing every other exit to `handle`, which returns whether to
   * go on. Returns the last exit.
   */
  run(handle: (exit: KvmExit) => boolean = () => false): KvmExit {
    while (true) {
      const exit = this.vcpu.run();
      if (exit.kind === "hlt" || (exit.kind === "io" && exit.port === STOP_PORT)) return exit;
      if (!handle(exit)) return exit;
    }
  }

  /** Runs to the end and returns what the guest wrote to ports, four bytes each; anything else is an error. */
  collect(): number[] {
    const values: number[] = [];
    const last = this.run((exit) => {
      if (exit.kind !== "io" || exit.direction !== "out") return false;
      values.push(new DataView(exit.data.buffer, exit.data.byteOffset).getUint32(0, true));
      return true;
    });
    if (last.kind !== "hlt" && last.kind !== "io") throw new Error(`The guest came out with ${Deno.inspect(last)}`);
    return values;
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}
