/**
 * A vCPU that runs in another thread, as seen from the thread that owns its VM.
 *
 * ```
 *   control                                  runner
 *   pauses += 1                              state = inside
 *   while state is inside:                   pauses > 0? state = outside, wait
 *     immediate_exit = 1, signal, wait       KVM_RUN
 *                                            immediate_exit = 0 if it was interrupted
 *   pauses -= 1, wake                        state = outside
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

import { DisposedError, MembackingError } from "../../src/core/errors.ts";
import { checkNumber } from "../../src/core/memory_range.ts";
import { Errno, OsError } from "../os/os_error.ts";
import { isAlive } from "../os/thread.ts";
import { currentThreadId, kickThread } from "./kick.ts";
import { kickSignal } from "./kick_signal.ts";
import { attachedThreads, isDisposed, type KvmVcpu } from "./kvm_vcpu.ts";
import type { SharedVcpu } from "./shared_vcpu.ts";
import { runnerThread, VCPU_STATE, WORD } from "./vcpu_words.ts";

/** What a `VcpuRunner` needs in the thread that runs the vCPU. Plain data: send it with `postMessage`. */
export interface SharedVcpuControl {
  /** The vCPU. */
  readonly vcpu: SharedVcpu;
  /** The words that both sides share. */
  readonly words: SharedArrayBuffer;
}

/** How a `VcpuControl` is made. */
export interface VcpuControlOptions {
  /**
   * How long `pause` waits for the vCPU to come out of the guest, in milliseconds; 10,000 when left out. It takes some
   * tens of microseconds, unless the runner's thread hangs in the kernel or its words were written over.
   */
  deadline?: number;
}

/** A vCPU did not come out of the guest in time. It is not paused. */
export class VcpuTimeoutError extends MembackingError {
  /** The class name, which is also what a stack trace shows. */
  override name = "VcpuTimeoutError";
  /** How long it was waited for, in milliseconds. */
  readonly milliseconds: number;

  /** Builds the error. */
  constructor(milliseconds: number) {
    super(`The vCPU did not come out of the guest within ${milliseconds} ms, look where the thread of its runner is`);
    this.milliseconds = milliseconds;
  }
}

/** How long to wait for a runner before it is signalled once more, in milliseconds. */
const PATIENCE = 1;
/** After how many times it looks whether the runner's thread is still the one it was. */
const DOUBTS = 50;
const DEFAULT_DEADLINE = 10_000;

// A second control of a vCPU would be unknown to its runner, which heeds the first alone.
const controlled = new WeakMap<KvmVcpu, VcpuControl>();

/** Pauses all or none: all at the same time, so that it takes as long as the slowest of them. */
let pauseAll: (controls: Iterable<VcpuControl>) => Disposable;

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
  static {
    pauseAll = (controls) => {
      const paused: VcpuControl[] = [];
      let isOver = false;
      const end = () => {
        if (isOver) return;
        isOver = true;
        for (const control of paused) control.#endPause();
      };
      try {
        for (const control of controls) {
          control.#beginPause();
          paused.push(control);
        }
        for (const control of paused) control.#awaitOutside();
      } catch (error) {
        end();
        throw error;
      }
      return { [Symbol.dispose]: end };
    };
  }

  readonly #vcpu: KvmVcpu;
  readonly #deadline: number;
  readonly #words = new Int32Array(new SharedArrayBuffer(WORD.count * Int32Array.BYTES_PER_ELEMENT));
  // What counts; the shared word is a copy for the runner.
  #pauses = 0;
  #disposed = false;

  /**
   * Controls `vcpu`, which stays the caller's to dispose, after this. Nobody else may set its `immediateExit`.
   *
   * @throws {MembackingError} If it has a control already. One whose runner has come to its end is disposed instead.
   * @throws {DisposedError} If it has been disposed.
   */
  constructor(vcpu: KvmVcpu, options: VcpuControlOptions = {}) {
    const { deadline = DEFAULT_DEADLINE } = options;
    checkNumber(deadline, "Deadline");
    void vcpu.immediateExit; // throws if it has been disposed
    const other = controlled.get(vcpu);
    if (other !== undefined && !other.#isOver) {
      throw new MembackingError("This vCPU has a VcpuControl already, dispose that first");
    }
    other?.[Symbol.dispose]();
    controlled.set(vcpu, this);
    this.#vcpu = vcpu;
    this.#deadline = deadline;
  }

  /** What `VcpuRunner.attach` needs. One runner runs one vCPU. */
  share(): SharedVcpuControl {
    this.#check();
    // The handler has to be there before anybody can be kicked.
    kickSignal();
    return { vcpu: this.#vcpu.share(), words: this.#words.buffer };
  }

  /** Whether it has been disposed. */
  get disposed(): boolean {
    return this.#disposed;
  }

  /** Whether the vCPU is in the guest, or about to enter it. */
  get isInside(): boolean {
    return Atomics.load(this.#words, WORD.state) === VCPU_STATE.inside;
  }

  /** How many pauses are in force. */
  get pauses(): number {
    return this.#pauses;
  }

  /**
   * Makes the present `run` return `"interrupted"`, or the next one if there is none. Several kicks before it returns
   * are one.
   *
   * @throws {OsError} If the signal cannot be sent. The run is interrupted when the guest next comes out by itself.
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
   *
   * @throws {VcpuTimeoutError} If it does not come out in time.
   * @throws {OsError} If the signal cannot be sent.
   * @throws {DisposedError} If the control or its vCPU has been disposed. Whatever is thrown, nothing is paused then.
   */
  pause(): Disposable {
    return pauseAll([this]);
  }

  /** Lets go of the vCPU. It no longer can be kicked or paused; pauses in force end as their handles are disposed. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    controlled.delete(this.#vcpu);
  }

  /** The first half of `pause`, without waiting. */
  #beginPause(): void {
    this.#check();
    this.#setPauses(this.#pauses + 1);
    try {
      // Wherever its word says that the runner is: one that is in the guest for all that would keep everybody waiting in
      // the kernel who asks the vCPU for anything.
      if (this.isInside || (this.#pauses === 1 && !isDisposed(this.#vcpu))) this.#signal();
    } catch (error) {
      this.#endPause();
      throw error;
    }
  }

  /** The second half of `pause`. */
  #awaitOutside(): void {
    const until = performance.now() + this.#deadline;
    for (let naps = 1; this.isInside; naps++) {
      if (Atomics.wait(this.#words, WORD.state, VCPU_STATE.inside, PATIENCE) !== "timed-out") continue;
      if (!this.isInside || !this.#signal()) return;
      if (naps % DOUBTS === 0 && !isAlive(runnerThread(this.#words))) return;
      if (performance.now() > until) throw new VcpuTimeoutError(this.#deadline);
    }
  }

  /** Ends one pause. */
  #endPause(): void {
    this.#setPauses(this.#pauses - 1);
    // One that was outside has not seen it. Nobody kicks meanwhile, and who did has left word of that.
    if (this.#pauses === 0 && !this.isInside && !isDisposed(this.#vcpu)) this.#vcpu.immediateExit = false;
    Atomics.notify(this.#words, WORD.pauses);
  }

  /** Whether there was a runner, and it has detached or its thread has ended. */
  get #isOver(): boolean {
    const thread = runnerThread(this.#words);
    return thread.tid !== 0 && (Atomics.load(this.#words, WORD.attached) === 0 || !isAlive(thread));
  }

  #setPauses(count: number): void {
    this.#pauses = count;
    Atomics.store(this.#words, WORD.pauses, count);
  }

  /**
   * Interrupts a run in progress. Returns whether a thread that may run the vCPU is still there: the runner's, or if its
   * words have been written over, those that have attached.
   */
  #signal(): boolean {
    const { tid } = runnerThread(this.#words);
    const attached = attachedThreads(this.#vcpu);
    if (tid === 0 && attached.length === 0 && !this.isInside) return false;
    this.#vcpu.immediateExit = true;
    if (attached.every((thread) => thread.tid === tid) && tid !== 0) return this.#signalThread(tid);
    const own = currentThreadId();
    return attached.filter((thread) => thread.tid !== own && isAlive(thread) && this.#signalThread(thread.tid)).length >
      0;
  }

  #signalThread(tid: number): boolean {
    try {
      kickThread(tid, kickSignal());
      return true;
    } catch (error) {
      // ESRCH: the thread ended inside, as a Worker does that is terminated and then kicked.
      if (error instanceof OsError && error.errno === Errno.ESRCH) return false;
      throw error;
    }
  }

  #check(): void {
    if (this.#disposed) throw new DisposedError("The control of a vCPU");
  }
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
  return () => pauseAll(controls);
}
