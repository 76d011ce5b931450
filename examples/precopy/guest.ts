/**
 * A guest that writes all over its memory, natively and without ever leaving it.
 *
 * @module
 */

import type { GuestMemory } from "membacking";
import { Kvm, type KvmVcpu, type KvmVm } from "membacking/kvm";
import { LongModeCode, startLongMode, VcpuThread } from "../guest/mod.ts";

/** Below this address are the guest's program and page tables, which it does not write. */
export const DATA_AT = 0x20_0000;
const CODE_AT = 0x1000;
const TABLES_AT = 0x1_0000;

/** How the guest writes. */
export interface ScribbleOptions {
  /** One past the last GPA it writes to. */
  readonly end: number;
  /** How many times it waits between two writes. */
  readonly idle: number;
  /** Where its random numbers begin. */
  readonly seed: number;
}

/** Writes a random number to a random place, waits a moment, and so on. */
export function scribble({ end, idle, seed }: ScribbleOptions): Uint8Array<ArrayBuffer> {
  return new LongModeCode()
    .set("r8", DATA_AT).set("rdi", (end - DATA_AT) / 8)
    .set("rbp", 6364136223846793005n).set("r14", 1442695040888963407n).set("r11", seed)
    .label("again")
    .raw(0x4c, 0x0f, 0xaf, 0xdd) // imul r11, rbp
    .addRegister("r11", "r14")
    .move("rax", "r11")
    .raw(0x48, 0xc1, 0xe8, 33) // shr rax, 33
    .raw(0x48, 0x0f, 0xaf, 0xc7) // imul rax, rdi
    .raw(0x48, 0xc1, 0xe8, 31) // shr rax, 31
    .raw(0x48, 0xc1, 0xe0, 3) // shl rax, 3
    .addRegister("rax", "r8")
    .store("rax", "r11", 8)
    .set("rbx", idle)
    .label("wait").pause().subtract("rbx", 1).jumpIf("notEqual", "wait")
    .jump("again")
    .bytes();
}

/** A virtual machine with one vCPU, and the thread that runs it. */
export class ScribblingGuest implements AsyncDisposable {
  /** The virtual machine, to be attached. */
  readonly vm: KvmVm;
  readonly #vcpu: KvmVcpu;
  readonly #stack: DisposableStack;
  #thread: VcpuThread | undefined;

  private constructor(stack: DisposableStack, vm: KvmVm, vcpu: KvmVcpu) {
    this.#stack = stack;
    this.vm = vm;
    this.#vcpu = vcpu;
  }

  /** Makes the machine, which has no memory yet. */
  static create(dirtyLog: "bitmap" | "ring"): ScribblingGuest {
    using stack = new DisposableStack();
    const kvm = stack.use(Kvm.open());
    const vm = stack.use(kvm.createVm({ dirtyLog }));
    const vcpu = stack.use(vm.createVcpu(0));
    vcpu.setCpuid2(kvm.getSupportedCpuid());
    return new ScribblingGuest(stack.move(), vm, vcpu);
  }

  /** Puts the program into memory and lets it run. */
  async start(memory: GuestMemory, options: ScribbleOptions): Promise<void> {
    startLongMode(this.#vcpu, {
      write: (gpa, bytes) => memory.write(gpa, bytes),
      tables: TABLES_AT,
      code: CODE_AT,
      program: scribble(options),
      ranges: [{ start: 0, end: Math.ceil(options.end / 0x20_0000) * 0x20_0000 }],
    });
    this.#thread = await VcpuThread.start(this.#vcpu);
  }

  /** Gets the vCPU out of the guest, and keeps it out until the result is disposed. */
  pause(): Disposable {
    return this.#thread?.pause() ?? { [Symbol.dispose]() {} };
  }

  /** Ends the run, and says what it came to. */
  async stop(): Promise<void> {
    const report = await this.#thread?.stop();
    if (report !== undefined && report.end !== "asked") {
      throw new Error(`The guest ended: ${report.end} ${report.detail}`);
    }
  }

  /** Ends it all. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.stop();
    } finally {
      this.#stack.dispose();
    }
  }
}
