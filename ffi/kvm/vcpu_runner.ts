/**
 * A vCPU in the thread that runs it, so that others can kick and pause it.
 *
 * Why it is safe: it enters the guest by `KvmVcpu.run` alone, and only while nobody wants it out. See `VcpuControl` for
 * how the two sides agree.
 *
 * @module
 */

import { MembackingError } from "../../src/core/errors.ts";
import { currentThread, isAlive, startWords } from "../os/thread.ts";
import { sharedWords } from "./attachments.ts";
import type { KvmExit } from "./exits.ts";
import { KvmVcpu } from "./kvm_vcpu.ts";
import type { SharedVcpuControl } from "./vcpu_control.ts";
import { runnerThread, VCPU_STATE, WORD } from "./vcpu_words.ts";

const INTERRUPTED: KvmExit = Object.freeze({ kind: "interrupted" });

/**
 * Runs a vCPU that a `VcpuControl` of another thread may kick and pause.
 *
 * @example Usage
 * ```ts ignore
 * // vcpu.ts, the Worker
 * self.onmessage = ({ data }: MessageEvent<SharedVcpuControl>) => {
 *   using runner = VcpuRunner.attach(data);
 *   while (true) {
 *     const exit = runner.run();
 *     if (exit.kind === "interrupted") return; // kicked: look what there is to do
 *     if (exit.kind === "io") handlePort(exit);
 *   }
 * };
 * ```
 */
export class VcpuRunner implements Disposable {
  /** The vCPU, attached in this thread. Run it by `run` alone, and leave `immediateExit` to the control. */
  readonly vcpu: KvmVcpu;
  readonly #words: Int32Array;
  #disposed = false;

  private constructor(vcpu: KvmVcpu, words: Int32Array) {
    this.vcpu = vcpu;
    this.#words = words;
  }

  /**
   * Attaches to the vCPU, to run it in this thread.
   *
   * @throws {OsError} If the vCPU is gone.
   * @throws {MembackingError} If another runner that is alive has attached.
   * @throws {TypeError | RangeError} If `shared` does not come from a `VcpuControl`.
   */
  static attach(shared: SharedVcpuControl): VcpuRunner {
    const words = sharedWords(shared.words, WORD.count, "words of a vCPU");
    const vcpu = KvmVcpu.attach(shared.vcpu);
    const free = Atomics.compareExchange(words, WORD.attached, 0, 1) === 0;
    if (!free && isAlive(runnerThread(words))) {
      vcpu[Symbol.dispose]();
      throw new MembackingError("Another VcpuRunner runs this vCPU already, dispose it first");
    }
    const thread = currentThread();
    const [startedLow, startedHigh] = startWords(thread);
    // A runner whose thread was ended in the guest has left the word as it was.
    Atomics.store(words, WORD.state, VCPU_STATE.outside);
    words[WORD.startedLow] = startedLow;
    words[WORD.startedHigh] = startedHigh;
    Atomics.store(words, WORD.thread, thread.tid);
    return new VcpuRunner(vcpu, words);
  }

  /**
   * Runs the guest until it needs the VMM, as `KvmVcpu.run` does. Pauses pass unnoticed: the thread waits until they
   * are over. `"interrupted"` means that somebody called `kick`; other signals pass unnoticed too.
   *
   * @throws {OsError} If KVM reports a failure that is not an exit.
   */
  run(): KvmExit {
    const { vcpu } = this;
    const words = this.#words;
    while (true) {
      Atomics.store(words, WORD.state, VCPU_STATE.inside);
      const pauses = Atomics.load(words, WORD.pauses);
      if (Atomics.load(words, WORD.kicked) !== 0) return this.#kicked();
      if (pauses !== 0) {
        this.#leave();
        // A kick wakes it too; one that comes between the look above and here is seen by the time-out.
        Atomics.wait(words, WORD.pauses, pauses, 1);
        continue;
      }
      let exit: KvmExit;
      try {
        exit = vcpu.run();
        // While it still counts as inside: once it is outside, the flag is the control's, who may finish an exit by it.
        // Whoever sets it again from now on has made its wish known before, and it is seen before the guest is entered.
        if (exit.kind === "interrupted") vcpu.immediateExit = false;
      } finally {
        this.#leave();
      }
      if (exit.kind !== "interrupted") return exit;
    }
  }

  /** Detaches from the vCPU. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.vcpu[Symbol.dispose]();
    Atomics.store(this.#words, WORD.attached, 0);
  }

  #leave(): void {
    Atomics.store(this.#words, WORD.state, VCPU_STATE.outside);
    if (Atomics.load(this.#words, WORD.pauses) !== 0) Atomics.notify(this.#words, WORD.state);
  }

  #kicked(): KvmExit {
    Atomics.store(this.#words, WORD.kicked, 0);
    this.#leave();
    return INTERRUPTED;
  }
}
