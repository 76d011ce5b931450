/**
 * A native guest that reads a window over and over in a thread of its own, while the test changes the memory under it.
 *
 * Every page of the window begins with a generation and its own address. The guest knows for each page the lowest
 * generation it may still see, and for all of them the highest there is, and reports whatever is outside.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import type { Mappable } from "membacking";
import { LongModeCode, REPORT_PORT, VcpuThread } from "../support/guest.ts";
import { NOTES, type Witness } from "./witness.ts";
import { PAGE } from "../support/units.ts";

const SWEEPS = NOTES;
const CHANGES = NOTES + 8;
const CEILING = NOTES + 16;
const FLOORS = NOTES + 0x1000;

/** Where the window is, and what is asked of it. */
export interface WatchOptions {
  readonly start: number;
  readonly end: number;
  /** Whether all pages change at once: having seen a generation on one page, the guest sees no older one on any. */
  readonly together: boolean;
}

/** The guest's program. */
function program({ start, end, together }: WatchOptions): Uint8Array {
  const code = new LongModeCode()
    .set("r8", SWEEPS).set("r9", 1).set("r10", end).set("r13", CHANGES).set("r15", CEILING).set("r14", 0)
    .label("sweep").set("rbx", start).set("r11", FLOORS)
    .label("next").load("rcx", "r11", 8).load("rax", "rbx", 4).load("rdi", "rbx", 4, 4).load("rsi", "r15", 8)
    .compareRegister("rdi", "rbx").jumpIf("notEqual", "bad")
    .compareRegister("rax", "rcx").jumpIf("below", "bad")
    .compareRegister("rax", "rsi").jumpIf("above", "bad")
    .compareRegister("rax", "r14").jumpIf("equal", "good");
  if (together) code.jumpIf("below", "bad");
  return code.atomicAdd("r13", "r9").move("r14", "rax").jump("good")
    .label("bad").out(REPORT_PORT)
    .label("good").add("rbx", PAGE).add("r11", 8).compareRegister("rbx", "r10").jumpIf("below", "next")
    .atomicAdd("r8", "r9").jump("sweep")
    .bytes();
}

/** Such a guest, running. */
export class Watch implements AsyncDisposable {
  readonly #witness: Witness;
  readonly #options: WatchOptions;
  readonly #thread: VcpuThread;
  #ended = false;

  private constructor(witness: Witness, options: WatchOptions, thread: VcpuThread) {
    this.#witness = witness;
    this.#options = options;
    this.#thread = thread;
    thread.ended.finally(() => this.#ended = true).catch(() => {});
  }

  /** Sets the guest of `witness` to watching. Its window shows generation 0 already. */
  static async start(witness: Witness, options: WatchOptions): Promise<Watch> {
    witness.begin(program(options));
    const watch = new Watch(witness, options, await VcpuThread.start(witness.vcpu));
    await watch.lookTwice();
    return watch;
  }

  /** Writes a generation into a file, for the pages of the window from `from` to `to` (GPAs). */
  stamp(file: Mappable, fileOffset: number, from: number, to: number, generation: number): void {
    this.#witness.setNote(CEILING, generation);
    stampPages(file, fileOffset, from, to, generation);
  }

  /** Says that from now on the pages from `from` to `to` show `generation` or a later one. */
  shown(from: number, to: number, generation: number): void {
    const at = FLOORS + (from - this.#options.start) / PAGE * 8;
    this.#witness.setNote(at, ...Array.from({ length: (to - from) / PAGE }, () => generation));
  }

  /** Waits until the guest has been over the window from one end to the other. */
  async lookTwice(): Promise<void> {
    const until = this.#witness.note(SWEEPS) + 2;
    while (!this.#ended && this.#witness.note(SWEEPS) < until) await new Promise((resolve) => setTimeout(resolve, 0));
  }

  /** How often the guest met another generation than on the page before. */
  get changesSeen(): number {
    return this.#witness.note(CHANGES);
  }

  /** Holds the guest, for `quiesce`. */
  pause(): Disposable {
    return this.#thread.pause();
  }

  /** Ends the guest, and makes sure that nothing but that ever brought it out. */
  async end(): Promise<void> {
    const { end, detail, exits, portWrites, mmio } = await this.#thread.stop();
    const { interrupted: _, ...unexpected } = exits;
    const seen = { end, detail, unexpected, reports: portWrites.slice(0, 3), mmio: mmio.slice(0, 3) };
    assertEquals(seen, { end: "asked", detail: "", unexpected: {}, reports: [], mmio: [] });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#thread.stop();
  }
}

/** Writes a generation and the address into pages of a file. */
export function stampPages(file: Mappable, fileOffset: number, from: number, to: number, generation: number): void {
  const words = new Uint32Array(2);
  const bytes = new Uint8Array(words.buffer);
  for (let gpa = from; gpa < to; gpa += PAGE) {
    words[0] = generation;
    words[1] = gpa;
    file.write(fileOffset + gpa - from, bytes);
  }
}
