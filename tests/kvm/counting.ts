/**
 * A virtual machine for tests of saved state: a native guest that counts in general and in SSE registers until it is told
 * to stop, with the timers of the interrupt controllers running.
 *
 * @module
 */

import { HostAddresses } from "../../ffi/host/host_addresses.ts";
import { Mappable, MemoryRange } from "membacking";
import { Kvm, type KvmVcpu, type KvmVm } from "membacking/kvm";
import { LongModeCode, startLongMode, STOP_PORT } from "../support/guest.ts";

const MEMORY = 2 ** 22;
/** What the guest reads and writes, by address. */
const AT = { step: 0x20_0000, stop: 0x20_0008, addend: 0x20_0010, sum: 0x20_0020, rounds: 0x20_0030, total: 0x20_0038 };
/** What it adds to the two halves of an SSE register in each round. */
export const ADDEND = [0x1_0000_0001n, 0x7fff_ffff_ffff_fff1n] as const;
/** The registers of the local interrupt controller. */
export const APIC = {
  base: 0xfee0_0000,
  svr: 0xf0,
  timer: 0x320,
  initial: 0x380,
  current: 0x390,
  divide: 0x3e0,
} as const;

function program(): Uint8Array {
  const code = new LongModeCode();
  const apic = (register: number, value: number) =>
    code.set("rbx", APIC.base + register).set("rax", value).store("rbx", "rax", 4);
  // A one-shot timer, masked, that runs for a long time; and channel 0 of the PIT.
  apic(APIC.svr, 0x1ff);
  apic(APIC.timer, 0x1_00ef);
  apic(APIC.divide, 0xa); // by 128
  apic(APIC.initial, 0xffff_ffff);
  for (const [port, value] of [[0x43, 0x34], [0x40, 0x34], [0x40, 0x12]]) code.raw(0xb0, value ?? 0, 0xe6, port ?? 0);
  return code
    .set("rbx", AT.step)
    .raw(0xf3, 0x0f, 0x6f, 0x4b, AT.addend - AT.step) // movdqu xmm1, [rbx + addend]
    .raw(0x66, 0x0f, 0xef, 0xc0) // pxor xmm0, xmm0
    .set("r8", 0).set("r9", 0)
    .label("again")
    .raw(0x66, 0x0f, 0xd4, 0xc1) // paddq xmm0, xmm1
    .add("r8", 1)
    .load("r10", "rbx", 8).addRegister("r9", "r10")
    .load("rax", "rbx", 8, AT.stop - AT.step).compare("rax", 0).jumpIf("equal", "again")
    .raw(0xf3, 0x0f, 0x7f, 0x43, AT.sum - AT.step) // movdqu [rbx + sum], xmm0
    .store("rbx", "r8", 8, AT.rounds - AT.step).store("rbx", "r9", 8, AT.total - AT.step)
    .out(STOP_PORT)
    .bytes();
}

/** What the guest has counted. */
export interface Counted {
  /** How many rounds it made. */
  readonly rounds: bigint;
  /** The step of each round, added up. */
  readonly total: bigint;
  /** The two halves of the SSE register. */
  readonly sum: readonly [bigint, bigint];
}

/** A VM with the guest, or with nothing but a copy of another one's memory. */
export class CountingMachine implements Disposable {
  readonly vm: KvmVm;
  readonly vcpu: KvmVcpu;
  readonly #ram: Mappable;
  readonly #stack: DisposableStack;

  constructor(copy?: Uint8Array) {
    using undo = new DisposableStack();
    const va = undo.use(HostAddresses.reserve(MEMORY));
    this.#ram = undo.use(Mappable.memfd("ram", MEMORY));
    using kvm = Kvm.open();
    this.vm = undo.use(kvm.createVm());
    this.vm.createIrqchip();
    this.vm.createPit2();
    this.vcpu = undo.use(this.vm.createVcpu(0));
    va.map(0, MEMORY, this.#ram, 0, true, undefined);
    this.vm.mapRange(va.base, new MemoryRange(0, MEMORY), { writable: true, executable: true });
    if (copy === undefined) {
      this.vcpu.setCpuid2(kvm.getSupportedCpuid());
      this.#start();
    } else {
      this.#ram.write(0, copy);
    }
    this.#stack = undo.move();
  }

  #start(): void {
    startLongMode(this.vcpu, {
      write: (gpa, bytes) => this.#ram.write(gpa, bytes),
      tables: 0x1_0000,
      code: 0x1000,
      program: program(),
      ranges: [{ start: 0, end: MEMORY }, { start: APIC.base, end: APIC.base + 0x20_0000 }],
    });
    this.step = 1n;
    ADDEND.forEach((half, i) => this.#write(AT.addend + 8 * i, half));
  }

  /** All of its memory. */
  get memory(): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(MEMORY);
    this.#ram.read(0, bytes);
    return bytes;
  }

  /** What the guest adds in each round from now on. */
  set step(step: bigint) {
    this.#write(AT.step, step);
  }

  /** Has the guest come to its end, and returns what it has counted. */
  finish(): Counted {
    this.tellToStop();
    const exit = this.vcpu.run();
    if (exit.kind !== "io" || exit.port !== STOP_PORT) throw new Error(`The guest came out with ${Deno.inspect(exit)}`);
    return this.counted;
  }

  /** Lets the guest come to its end. */
  tellToStop(): void {
    this.#write(AT.stop, 1n);
  }

  /** What it has counted, once it has come to its end. */
  get counted(): Counted {
    const at = (gpa: number) => new DataView(this.memory.buffer).getBigUint64(gpa, true);
    return { rounds: at(AT.rounds), total: at(AT.total), sum: [at(AT.sum), at(AT.sum + 8)] };
  }

  #write(gpa: number, value: bigint): void {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, value, true);
    this.#ram.write(gpa, bytes);
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}
