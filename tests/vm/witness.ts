/**
 * Guests as witnesses: a guest that loads and stores where it is told to and says what it found there, so that a test
 * of the memory map can ask the one whose opinion counts.
 *
 * The guest's own code, tables and notes lie in memory that no region manager knows of, far above what tests map.
 *
 * @module
 */

import { HostAddresses } from "../../ffi/host/host_addresses.ts";
import { Mappable, MemoryRange } from "membacking";
import { Kvm, type KvmExit, type KvmMmioExit, type KvmVcpu, type KvmVm } from "membacking/kvm";
import { LongModeCode, RealModeCode, REPORT_PORT, startLongMode, startRealMode, STOP_PORT } from "../support/guest.ts";
import { PAGE } from "../support/units.ts";

/** What a load finds: the word there, no memory, or memory that is missing behind a slot. */
export type Sight = number | "mmio" | "fault";

/** What becomes of a store. `"mmio"` if the VMM gets it instead of memory. */
export type Fate = "stored" | "mmio" | "fault";

/** A store to make. */
export interface Store {
  readonly gpa: number;
  readonly word: number;
}

/**
 * How a guest runs: `"real"` mode is the simplest there is, and emulated on some hosts. `"native"` is user privilege of
 * long mode, which runs on the processor itself everywhere, with real page faults.
 */
export type Mode = "real" | "native";

/** Both modes. */
export const MODES: readonly Mode[] = ["real", "native"];

/** What a `Witness` is made with. */
export interface WitnessOptions {
  /** How it runs; `"native"` when left out. */
  mode?: Mode;
  /** Its name in messages. */
  name?: string;
  /** As for `Kvm.createVm`. */
  zapAllOnSlotDelete?: boolean;
  /** Where the addresses end that a native guest can reach besides its home: 64 MiB when left out. */
  reach?: number;
  /** More addresses it can reach, in whole 2 MiB. */
  more?: readonly { start: number; end: number }[];
}

/** The guest's own memory, by guest-physical address. */
export const HOME: MemoryRange = MemoryRange.of(0x4000_0000, 0x20_0000);

const TABLES = HOME.start;
const CODE = HOME.start + 0x2_0000;
const TASK = HOME.start + 0x2_f000;
const COUNT = HOME.start + 0x3_0000;
/** Notes for programs of a test's own. */
export const NOTES: number = HOME.start + 0x4_0000;
const LIST = HOME.start + 0x8_0000;

const ENTRY = { size: 24, address: 0, isStore: 8, word: 16 } as const;

/** One access, and what came of it. */
interface Access {
  readonly gpa: number;
  readonly isStore: boolean;
  word: number;
  outcome: "memory" | "mmio" | "fault";
}

/** The length of `LongModeCode.load` and `store` of four bytes: what to skip of an access that cannot be made. */
const ACCESS_LENGTH = new LongModeCode().load("rax", "rbx", 4).bytes().length;

/** Walks the list: loads or stores four bytes at each address, then says so. */
const WALK = new LongModeCode()
  .label("again").set("r9", COUNT).load("r10", "r9", 8).set("r8", LIST)
  .label("next").compare("r10", 0).jumpIf("equal", "done")
  .load("rbx", "r8", 8, ENTRY.address).load("rcx", "r8", 8, ENTRY.isStore)
  .compare("rcx", 1).jumpIf("equal", "store")
  .load("rax", "rbx", 4).store("r8", "rax", 4, ENTRY.word).jump("go on")
  .label("store").load("rax", "r8", 4, ENTRY.word).store("rbx", "rax", 4)
  .label("go on").add("r8", ENTRY.size).subtract("r10", 1).jump("next")
  .label("done").out(REPORT_PORT).jump("again")
  .bytes();

/** A virtual machine with one vCPU, whose guest tells what it finds in memory. */
export class Witness implements Disposable {
  readonly vm: KvmVm;
  readonly vcpu: KvmVcpu;
  readonly mode: Mode;
  /** Called when memory is missing behind a slot; the access is then tried again. Without it, it is passed over. */
  onFault: (() => void) | undefined;
  readonly #home: Mappable;
  readonly #va: HostAddresses;
  readonly #options: WitnessOptions;

  constructor(options: WitnessOptions = {}) {
    const { mode = "native", name = "witness", zapAllOnSlotDelete = true } = options;
    using undo = new DisposableStack();
    using kvm = Kvm.open();
    this.mode = mode;
    this.#options = options;
    this.#home = undo.use(Mappable.memfd("home", HOME.length));
    this.#va = undo.use(HostAddresses.reserve(HOME.length));
    this.#va.map(0, HOME.length, this.#home, 0, true, undefined);
    this.vm = undo.use(kvm.createVm({ name, zapAllOnSlotDelete }));
    this.vm.mapRange(this.#va.base, HOME, { writable: true, executable: true });
    this.vcpu = undo.use(this.vm.createVcpu(0));
    this.vcpu.setCpuid2(kvm.getSupportedCpuid());
    if (mode === "native") this.begin(WALK);
    undo.move();
  }

  /** The word at `gpa`, or why there is none. */
  load(gpa: number): Sight {
    return this.look([gpa])[0] ?? "mmio";
  }

  /** The words at several addresses. */
  look(gpas: readonly number[]): Sight[] {
    return this.#run(gpas.map((gpa) => ({ gpa, isStore: false, word: 0, outcome: "memory" })))
      .map(({ word, outcome }) => outcome === "memory" ? word : outcome);
  }

  /** Stores a word, and says what became of it. */
  store(gpa: number, word: number): Fate {
    return this.write([{ gpa, word }])[0] ?? "mmio";
  }

  /** Stores several words. */
  write(stores: readonly Store[]): Fate[] {
    return this.#run(stores.map(({ gpa, word }) => ({ gpa, word, isStore: true, outcome: "memory" })))
      .map(({ outcome }) => outcome === "memory" ? "stored" : outcome);
  }

  /** The words at the beginnings of the pages of `[start, end)`. */
  pages(start: number, end: number): Sight[] {
    return this.look(Array.from({ length: (end - start) / PAGE }, (_, i) => start + i * PAGE));
  }

  /** The slots as KVM has them, without the guest's home. */
  get slots(): string[] {
    return this.vm.slots.filter(({ range }) => !range.equals(HOME)).map(({ slot, range, hva, writable }) =>
      `${slot}: ${range} ${writable ? "rw" : "ro"} at 0x${hva.toString(16)}`
    );
  }

  /** Makes a native guest begin with another program. */
  begin(program: Uint8Array): void {
    const { reach = 2 ** 26, more = [] } = this.#options;
    startLongMode(this.vcpu, {
      write: (gpa, bytes) => this.#home.write(gpa - HOME.start, bytes),
      tables: TABLES,
      code: CODE,
      program,
      ranges: [{ start: 0, end: reach }, HOME, ...more],
    });
    // Some KVMs lose IOPL where they emulate an access. Then ports are open by the zeros of the task's permission map,
    // which has to be in memory for that.
    const { tr } = this.vcpu.getSregs();
    this.vcpu.setSregs({ tr: { ...tr, base: BigInt(TASK) } });
  }

  /** The 64-bit number at an address of its home. */
  note(gpa: number): number {
    const bytes = new Uint8Array(8);
    this.#home.read(gpa - HOME.start, bytes);
    return Number(new DataView(bytes.buffer).getBigUint64(0, true));
  }

  /** Sets the 64-bit numbers from an address of its home on. */
  setNote(gpa: number, ...values: readonly number[]): void {
    this.#home.write(gpa - HOME.start, quads(values));
  }

  [Symbol.dispose](): void {
    this.vcpu[Symbol.dispose]();
    this.vm[Symbol.dispose]();
    this.#va[Symbol.dispose]();
    this.#home[Symbol.dispose]();
  }

  #run(accesses: Access[]): Access[] {
    if (this.mode === "native") this.#runNative(accesses);
    else this.#runReal(accesses);
    return accesses;
  }

  #runNative(accesses: Access[]): void {
    const list = accesses.flatMap(({ gpa, isStore, word }) => [gpa, isStore ? 1 : 0, word]);
    this.#home.write(COUNT - HOME.start, quads([accesses.length]));
    this.#home.write(LIST - HOME.start, quads(list));
    const current = (): Access => {
      const index = (Number(this.vcpu.getRegs().r8) - LIST) / ENTRY.size;
      return accesses[index] ?? failed(`the guest is at entry ${index} of ${accesses.length}`);
    };
    while (true) {
      const exit = this.vcpu.run();
      if (exit.kind === "io" && exit.port === REPORT_PORT) break;
      if (exit.kind === "mmio") takeMmio(current(), exit);
      else if (exit.kind !== "fault") failed(`the guest came out with ${Deno.inspect(exit)}`);
      else if (this.onFault !== undefined) this.onFault();
      else {
        current().outcome = "fault";
        this.vcpu.setRegs({ rip: this.vcpu.getRegs().rip + BigInt(ACCESS_LENGTH) });
      }
    }
    const results = new Uint8Array(accesses.length * ENTRY.size);
    this.#home.read(LIST - HOME.start, results);
    const view = new DataView(results.buffer);
    accesses.forEach((access, i) => {
      if (!access.isStore) access.word = view.getUint32(i * ENTRY.size + ENTRY.word, true);
    });
  }

  #runReal(accesses: Access[]): void {
    const code = new RealModeCode();
    for (const { gpa, isStore, word } of accesses) {
      if (isStore) code.set(word).store(gpa, 4).out(REPORT_PORT, 4);
      else code.load(gpa, 4).out(REPORT_PORT, 4);
    }
    this.#home.write(CODE - HOME.start, code.out(STOP_PORT, 1).bytes());
    startRealMode(this.vcpu, CODE);
    let index = 0;
    while (true) {
      const exit = this.vcpu.run();
      if (exit.kind === "io" && exit.port === STOP_PORT) break;
      const access = accesses[index] ?? failed(`the guest came out with ${Deno.inspect(exit)}`);
      if (exit.kind === "mmio") {
        takeMmio(access, exit);
      } else if (exit.kind === "io" && exit.port === REPORT_PORT) {
        if (!access.isStore) access.word = new DataView(exit.data.buffer, exit.data.byteOffset).getUint32(0, true);
        index++;
      } else {
        failed(`the guest came out with ${Deno.inspect(exit)}`);
      }
    }
    if (index !== accesses.length) failed(`the guest stopped after ${index} of ${accesses.length} accesses`);
  }
}

/** Answers an MMIO exit, after making sure that it tells the whole truth about the access. */
function takeMmio(access: Access, exit: KvmMmioExit): void {
  const { gpa, isStore, word } = access;
  const data = new DataView(exit.data.buffer, exit.data.byteOffset, exit.length);
  const isRight = exit.gpa === gpa && exit.isWrite === isStore && exit.length === 4 &&
    (!isStore || data.getUint32(0, true) === word);
  if (!isRight) failed(`an access to 0x${gpa.toString(16)} left the guest as ${describe(exit)}`);
  if (!isStore) exit.data.fill(0xff);
  access.outcome = "mmio";
}

function describe(exit: KvmExit): string {
  return Deno.inspect(exit);
}

function failed(what: string): never {
  throw new Error(`Witness: ${what}`);
}

function quads(values: readonly number[]): Uint8Array {
  return new Uint8Array(new BigUint64Array(values.map(BigInt)).buffer);
}
