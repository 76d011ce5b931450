/**
 * A vCPU that runs in another thread, as seen from the thread that owns its VM.
 *
 * ```
 *   control                                  runner
 *   pauses += 1                              state = inside
 *   while state is inside:                   pauses > 0? state = outside, wait
 *     immediate_exit = 1, signal, wait       KVM_RUN
 *                                            state = outside
 *   pauses -= 1, wake                        immediate_exit = 0 if it was interrupted
 * ```
 *
 * Each side first writes and then reads, so that one of them always sees the other. The signal alone would be lost
 * between the runner's look and KVM_RUN, the flag alone does not get a running vCPU out; and a signal that comes before
 * the flag is seen is sent again a moment later.
 *
 * Why it is safe: besides shared words and the vCPU's own page, it sends a signal that does nothing to a thread of this
 * process.
 *
 * @module
 */

import { DisposedError } from "../../src/core/errors.ts";
import { OsError } from "../os/os_error.ts";
import { isAlive, type ThreadIdentity } from "../os/thread.ts";
import { kickThread } from "./kick.ts";
import { kickSignal } from "./kick_signal.ts";
import type { KvmVcpu, SharedVcpu } from "./kvm_vcpu.ts";
import { VCPU_STATE, WORD } from "./vcpu_words.ts";

/** What a `VcpuRunner` needs in the thread that runs the vCPU. Plain data: send it with `postMessage`. */
export interface SharedVcpuControl {
  /** The vCPU. */
  readonly vcpu: SharedVcpu;
  /** The words that both sides share. */
  readonly words: SharedArrayBuffer;
}

/** How long to wait for a runner before it is signalled once more, in milliseconds. */
const PATIENCE = 1;
/** After how many times it looks whether the runner's thread is still the one it was. */
const DOUBTS = 50;

/**
 * Kicks, pauses and resumes a vCPU that a `VcpuRunner` runs in another thread, usually a Worker.
 *
 * `pause` is what a `Quiesce` hook of a region manager needs: see `quiesceVcpus`. A runner whose thread is doing
 * something else than running the guest counts as out of it already, so a vCPU that waits for an answer of the owner
 * (`SyncRegionManagerClient`) is never waited for.
 *
 * Deno does not stop a Worker that is inside the guest: after `worker.terminate()`, call `kick`.
 *
 * @example Usage
 * ```ts ignore
 * using vcpu = vm.createVcpu(0);
 * using control = new VcpuControl(vcpu);
 * const worker = new Worker(new URL("./vcpu.ts", import.meta.url), { type: "module" });
 * worker.postMessage(control.share());
 * // ...
 * {
 *   using _paused = control.pause(); // out of the guest when this returns
 * }
 * ```
 */
export class VcpuControl implements Disposable {
  readonly #vcpu: KvmVcpu;
  readonly #words = new Int32Array(new SharedArrayBuffer(WORD.count * Int32Array.BYTES_PER_ELEMENT));
  #disposed = false;

  /** Controls `vcpu`, which stays the caller's to dispose, after this. Nobody else may set its `immediateExit`. */
  constructor(vcpu: KvmVcpu) {
    this.#vcpu = vcpu;
  }

  /** What `VcpuRunner.attach` needs. One runner runs one vCPU. */
  share(): SharedVcpuControl {
    this.#check();
    // The handler has to be there before anybody can be kicked.
    kickSignal();
    return { vcpu: this.#vcpu.share(), words: this.#words.buffer };
  }

  /** Whether the vCPU is in the guest, or about to enter it. */
  get isInside(): boolean {
    return Atomics.load(this.#words, WORD.state) === VCPU_STATE.inside;
  }

  /** How many pauses are in force. */
  get pauses(): number {
    return Atomics.load(this.#words, WORD.pauses);
  }

  /**
   * Makes the present `run` return `"interrupted"`, or the next one if there is none. Several kicks before it returns
   * are one.
   */
  kick(): void {
    this.#check();
    Atomics.store(this.#words, WORD.kicked, 1);
    // A runner that waits for the end of a pause looks again.
    Atomics.notify(this.#words, WORD.pauses);
    if (this.isInside) this.#signal();
  }

  /**
   * Gets the vCPU out of the guest and keeps it out until the result is disposed. Returns once it is out, which takes
   * some tens of microseconds. Pauses may overlap: the vCPU runs when the last one is over.
   */
  pause(): Disposable {
    this.beginPause();
    this.awaitOutside();
    return pauseHandle([this]);
  }

  /**
   * The first half of `pause`, without waiting.
   *
   * @internal For pausing several at a time.
   */
  beginPause(): void {
    this.#check();
    Atomics.add(this.#words, WORD.pauses, 1);
    if (this.isInside) this.#signal();
  }

  /**
   * The second half of `pause`.
   *
   * @internal
   */
  awaitOutside(): void {
    for (let naps = 1; this.isInside; naps++) {
      if (Atomics.wait(this.#words, WORD.state, VCPU_STATE.inside, PATIENCE) !== "timed-out") continue;
      if (!this.isInside || !this.#signal()) return;
      if (naps % DOUBTS === 0 && !isAlive(this.#thread())) return;
    }
  }

  /**
   * Ends one pause.
   *
   * @internal
   */
  endPause(): void {
    Atomics.sub(this.#words, WORD.pauses, 1);
    Atomics.notify(this.#words, WORD.pauses);
  }

  /** Lets go of the vCPU. It no longer can be kicked or paused; pauses in force end as their handles are disposed. */
  [Symbol.dispose](): void {
    this.#disposed = true;
  }

  /** Interrupts a run in progress. Returns whether the thread is still there. */
  #signal(): boolean {
    try {
      this.#vcpu.immediateExit = true;
      kickThread(Atomics.load(this.#words, WORD.thread), kickSignal());
      return true;
    } catch (error) {
      // ESRCH: the thread ended inside, as a Worker does that is terminated and then kicked.
      if (error instanceof OsError && error.code === "ESRCH") return false;
      throw error;
    }
  }

  #thread(): ThreadIdentity {
    const word = (at: number) => (this.#words[at] ?? 0) >>> 0;
    const started = word(WORD.startedLow) + word(WORD.startedHigh) * 2 ** 32;
    return { tid: word(WORD.thread), started: started === 0 ? null : String(started) };
  }

  #check(): void {
    if (this.#disposed) throw new DisposedError("The control of a vCPU");
  }
}

function pauseHandle(controls: readonly VcpuControl[]): Disposable {
  let isOver = false;
  return {
    [Symbol.dispose]() {
      if (isOver) return;
      isOver = true;
      for (const control of controls) control.endPause();
    },
  };
}

/**
 * A `quiesce` hook for a region manager that holds vCPUs out of the guest: all at the same time, so that it takes as
 * long as the slowest of them. `controls` is looked at each time, so vCPUs may come and go.
 *
 * @example Usage
 * ```ts ignore
 * const controls = new Set<VcpuControl>();
 * using regions = new RegionManager(va, { quiesce: quiesceVcpus(controls) });
 * ```
 */
export function quiesceVcpus(controls: Iterable<VcpuControl>): () => Disposable {
  return () => {
    const paused: VcpuControl[] = [];
    try {
      for (const control of controls) {
        control.beginPause();
        paused.push(control);
      }
      for (const control of paused) control.awaitOutside();
    } catch (error) {
      for (const control of paused) control.endPause();
      throw error;
    }
    return pauseHandle(paused);
  };
}
