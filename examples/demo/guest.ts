import type { Partition, RegionManager } from "membacking";
import { Kvm, type KvmVcpu, type KvmVm } from "membacking/kvm";
import { startRealMode } from "../guest/mod.ts";
import { fromWord, toWord } from "./word.ts";

/** What the demo needs of a guest, or of what stands in for one. */
export interface Guest extends Disposable {
  /** Who loads and stores: "guest", unless it is someone else. */
  readonly who: string;
  /** What the guest runs in. */
  readonly partition: Partition;
  /** Puts the guest's program into guest memory. */
  start(regions: RegionManager): void;
  /** Loads four bytes at `gpa`. A load that finds no memory is answered with "mmio". */
  load(gpa: number): string;
  /** Stores four bytes at `gpa`, and says what became of them. */
  store(gpa: number, word: string): string;
}

const CODE = 0x1000;
const PORT = { address: 0x10, isStore: 0x11, loaded: 0x12, toStore: 0x13, stored: 0x14 };

/** Real-mode code. The ports are its only way out, so each of its turns is: ask, ask, load or store, tell. */
// deno-fmt-ignore
const PROGRAM = new Uint8Array([
  /* next:  */ 0x66, 0xe5, PORT.address,  // in eax, address
               0x66, 0x89, 0xc3,          // mov ebx, eax
               0xe4, PORT.isStore,        // in al, isStore
               0x84, 0xc0,                // test al, al
               0x75, 9,                   // jnz store
               0x67, 0x66, 0x8b, 0x03,    // mov eax, [ebx]
               0x66, 0xe7, PORT.loaded,   // out loaded, eax
               0xeb, -21,                 // jmp next
  /* store: */ 0x66, 0xe5, PORT.toStore,  // in eax, toStore
               0x67, 0x66, 0x89, 0x03,    // mov [ebx], eax
               0xe6, PORT.stored,         // out stored, al
               0xeb, -32,                 // jmp next
]);

/** A guest that loads and stores where it is told to, and tells what it got. */
export class KvmGuest implements Guest {
  readonly who = "guest";
  /** The virtual machine it runs in. */
  readonly vm: KvmVm;
  readonly #vcpu: KvmVcpu;

  /** Throws an `OsError` where there is no KVM. */
  constructor() {
    using kvm = Kvm.open();
    this.vm = kvm.createVm({ name: "KVM slots" });
    this.#vcpu = this.vm.createVcpu(0);
  }

  get partition(): Partition {
    return this.vm;
  }

  start(regions: RegionManager): void {
    regions.memory.write(CODE, PROGRAM);
    startRealMode(this.#vcpu, CODE);
  }

  load(gpa: number): string {
    return this.#turn(gpa, null);
  }

  store(gpa: number, word: string): string {
    return this.#turn(gpa, word);
  }

  /** Runs the guest until it has told the result of one load, or of a store if there is something to store. */
  #turn(gpa: number, word: string | null): string {
    let fate = "reaches memory";
    for (;;) {
      const exit = this.#vcpu.run();
      if (exit.kind === "mmio") {
        if (exit.isWrite) fate = `is an MMIO exit, ${fromWord(exit.data)} at 0x${exit.gpa.toString(16)}`;
        else exit.data.set(toWord("mmio"));
        continue;
      }
      if (exit.kind !== "io") throw new Error(`The guest stopped with exit "${exit.kind}"`);
      switch (exit.port) {
        case PORT.address:
          new DataView(exit.data.buffer, exit.data.byteOffset).setUint32(0, gpa, true);
          break;
        case PORT.isStore:
          exit.data[0] = word === null ? 0 : 1;
          break;
        case PORT.toStore:
          exit.data.set(toWord(word ?? ""));
          break;
        case PORT.loaded:
          return fromWord(exit.data);
        case PORT.stored:
          return fate;
      }
    }
  }

  [Symbol.dispose](): void {
    this.#vcpu[Symbol.dispose]();
    this.vm[Symbol.dispose]();
  }
}
