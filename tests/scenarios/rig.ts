/**
 * What the scenarios of the kernel's own tests need: a guest with several vCPUs that run natively, its memory, and words
 * in it by which guest and host tell each other how far they are.
 *
 * @module
 */

import { GuestMemoryManager, MemoryRange } from "membacking";
import { Kvm, type KvmVcpu, type KvmVm } from "membacking/kvm";
import { type IdentityRange, LongModeCode, startLongMode, type VcpuReport, VcpuThread } from "../support/guest.ts";
import { PAGE } from "../support/units.ts";

/** What the guest reads where there is no memory. */
export const NOTHING = 2n ** 64n - 1n;

const CODE = 0x2000;
const MOST_VCPUS = 4;
/** A page of words for each vCPU. */
const WORDS = 0x8000;
const TABLES = 0x1_0000;
/** What scenarios may use begins here; below are code, words and page tables. */
export const FREE = 0x20_0000;

/** Words that every vCPU has, by their offset. */
const WORD = { rounds: 0, stop: 8, argument: 16 } as const;

/** What a scenario is made with. */
export interface ScenarioOptions {
  /** The RAM from address 0 on, in bytes. */
  readonly ram: number;
  /** How many vCPUs; 1 when left out. */
  readonly vcpus?: number;
  /** What the guest can address besides its RAM. */
  readonly ranges?: readonly IdentityRange[];
  /** Whether vCPUs are held while memory changes; `true` when left out. */
  readonly quiesce?: boolean;
  /** Whether KVM drops everything when a slot goes. */
  readonly zapAllOnSlotDelete?: boolean;
}

/** A guest and its memory. */
export class Scenario implements AsyncDisposable {
  readonly memory: GuestMemoryManager;
  readonly vm: KvmVm;
  readonly #vcpus: readonly KvmVcpu[];
  readonly #threads: VcpuThread[] = [];
  readonly #ranges: readonly IdentityRange[];
  readonly #stack: DisposableStack;
  /** How often vCPUs were held. */
  held = 0;

  constructor(options: ScenarioOptions) {
    const { ram, vcpus = 1, ranges = [], quiesce = true, zapAllOnSlotDelete = true } = options;
    if (vcpus > MOST_VCPUS) throw new RangeError(`There is room for the programs of ${MOST_VCPUS} vCPUs`);
    using stack = new DisposableStack();
    this.memory = stack.use(GuestMemoryManager.create({
      maxAddress: 2 ** 33,
      ram: [{ ranges: [new MemoryRange(0, ram)] }],
      ...(quiesce && { quiesce: () => this.#hold() }),
    }));
    using kvm = Kvm.open();
    this.vm = stack.use(kvm.createVm({ zapAllOnSlotDelete }));
    this.memory.attachPartition(this.vm);
    const cpuid = kvm.getSupportedCpuid();
    this.#vcpus = Array.from({ length: vcpus }, (_, id) => {
      const vcpu = stack.use(this.vm.createVcpu(id));
      vcpu.setCpuid2(cpuid);
      return vcpu;
    });
    this.#ranges = [{ start: 0, end: ram }, ...ranges];
    this.#stack = stack.move();
  }

  /** Lets the vCPUs run programs, one each. */
  async start(programs: readonly Uint8Array[]): Promise<void> {
    for (const [i, program] of programs.entries()) {
      const vcpu = this.#vcpus[i];
      if (vcpu === undefined) throw new RangeError(`There is no vCPU ${i}`);
      if (program.length > PAGE) throw new RangeError("A program has a page");
      startLongMode(vcpu, {
        write: (gpa, bytes) => this.memory.memory.write(gpa, bytes),
        tables: TABLES,
        code: CODE + i * PAGE,
        program,
        ranges: this.#ranges,
      });
      this.#threads.push(await VcpuThread.start(vcpu));
    }
  }

  /** How many rounds a vCPU has made. */
  rounds(vcpu = 0): bigint {
    return this.memory.memory.readBigUint64(words(vcpu) + WORD.rounds);
  }

  /** The word of the first program's own, for both sides. */
  get argument(): bigint {
    return this.result(0);
  }

  set argument(value: bigint) {
    this.memory.memory.writeBigUint64(words(0) + WORD.argument, value);
  }

  /** What the program of a vCPU has put into its own word. */
  result(vcpu: number): bigint {
    return this.memory.memory.readBigUint64(words(vcpu) + WORD.argument);
  }

  /** Waits until every vCPU has begun and ended a round since now. */
  async aRound(): Promise<void> {
    const before = this.#threads.map((_, i) => this.rounds(i));
    await this.until(() => before.every((rounds, i) => this.rounds(i) >= rounds + 2n));
  }

  /** Waits until something is so. A vCPU that ends meanwhile is an error. */
  async until(isSo: () => boolean): Promise<void> {
    const ended = Promise.race(this.#threads.map(({ ended }) => ended));
    while (!isSo()) {
      const report = await Promise.race([ended, new Promise<null>((resolve) => setTimeout(resolve, 0, null))]);
      if (report !== null) throw new Error(`A vCPU ended: ${report.end} ${report.detail}`);
    }
  }

  /** Asks the programs to end after their round and says what happened. */
  async stop(): Promise<VcpuReport[]> {
    this.#threads.forEach((_, i) => this.memory.memory.writeBigUint64(words(i) + WORD.stop, 1n));
    return await Promise.all(this.#threads.map(({ ended }) => ended));
  }

  /** Gets the vCPUs out, wherever they are. */
  async kick(): Promise<VcpuReport[]> {
    return await Promise.all(this.#threads.map((thread) => thread.stop()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kick();
    this.#stack[Symbol.dispose]();
  }

  #hold(): Disposable {
    this.held++;
    const stack = new DisposableStack();
    for (const thread of this.#threads) stack.use(thread.pause());
    return stack;
  }
}

/**
 * A program of rounds: `round` is the body, which may use all registers but RBP, and the vCPU counts the rounds and ends
 * after one when it is asked to. RSI holds the address of its words.
 */
export function rounds(vcpu: number, round: (code: LongModeCode) => LongModeCode): Uint8Array<ArrayBuffer> {
  const code = new LongModeCode().label("round").set("rsi", words(vcpu));
  return round(code)
    .label("end of round").set("rsi", words(vcpu)).set("rbp", 1).atomicAdd("rsi", "rbp")
    .load("rax", "rsi", 8, WORD.stop).compare("rax", 0).jumpIf("equal", "round")
    .out(0xf4).jump("end of round").bytes();
}

/** The offset of the program's own word from RSI. */
export const ARGUMENT = WORD.argument;
/** The offset from RSI of the word that is 1 once the program is to end. */
export const STOP = WORD.stop;

/** What an ordinary end looks like: the program was asked to, and nothing else happened. */
export const UNDISTURBED = { io: 1 } as const;

function words(vcpu: number): number {
  return WORDS + vcpu * PAGE;
}
