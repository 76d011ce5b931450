/**
 * What a person sees of a boot: the firmware's log, and in between what became of the memory.
 *
 * @module
 */

import { drawMemoryMap, type InspectNode } from "membacking";
import { GOOD } from "./boot_sector.ts";
import type { MachineEvents, MemoryChange } from "./machine.ts";
import { describeCrash } from "../pc/crash.ts";
import type { BootEnd } from "./protocol.ts";

const COLUMNS = 100;
const DIM = "2";
const RED = "31";
const GREEN = "32";
const YELLOW = "33";
const CYAN = "36";

const ENDS = { done: "Booted", kicked: "Stopped", crash: "Crashed" } as const;

/** Prints a boot. */
export class Screen implements MachineEvents {
  readonly #print: (line: string) => void;
  readonly #color: boolean;
  readonly #start = performance.now();

  /** Lines go to `print`. */
  constructor(print: (line: string) => void, color: boolean) {
    this.#print = print;
    this.#color = color;
  }

  /** The firmware's log goes through as it is. */
  onLog(line: string): void {
    const seconds = ((performance.now() - this.#start) / 1000).toFixed(3);
    this.#print(`${this.#styled(DIM, seconds.padStart(7))}  ${line}`);
  }

  /** What the boot sector found out. */
  onFinding(line: string): void {
    this.#aside(line.endsWith(GOOD) ? GREEN : RED, `guest   ${line}`);
  }

  /** What the guest did, what that did to the memory, and what it took. */
  onChange({ cause, effects, slots, micros }: MemoryChange): void {
    this.#aside(CYAN, `memory  ${cause}${effects.length > 0 ? ` → ${effects.join("; ")}` : ""}`);
    const ioctls = [
      ...slots.deleted.map((range) => `−${range}`),
      ...slots.made.map(({ range, writable }) => `+${range} ${writable ? "rw" : "ro"}`),
    ];
    const count = `${ioctls.length} slot ioctl${ioctls.length === 1 ? "" : "s"}`;
    const took = `${micros.toFixed(0)} µs${ioctls.length > 0 ? `, ${slots.micros.toFixed(0)} µs of it KVM` : ""}`;
    this.#aside(DIM, `        ${count}, ${took}`);
    for (const ioctl of ioctls) this.#aside(DIM, `        ${ioctl}`);
  }

  /** Why memory is not as the guest wanted it. */
  onRefused(why: string): void {
    this.#aside(YELLOW, `refused ${why}`);
  }

  /** The memory map, and how it went. */
  end(map: InspectNode, { why, crash, exits, millis }: BootEnd, changes: readonly MemoryChange[]): void {
    this.#print("");
    if (crash !== null) { for (const line of describeCrash(crash)) this.#print(this.#styled(RED, line)); }
    this.#print(drawMemoryMap(map, { columns: COLUMNS, color: this.#color }));
    this.#print("");
    const made = changes.reduce((sum, { slots }) => sum + slots.made.length, 0);
    const deleted = changes.reduce((sum, { slots }) => sum + slots.deleted.length, 0);
    const total = Object.values(exits).reduce((sum, count) => sum + count, 0);
    this.#print(
      `${ENDS[why]} after ${(millis / 1000).toFixed(1)} s and ${total} exits; ` +
        `${made + deleted} slot ioctls, ${deleted} of them deletes`,
    );
  }

  #aside(style: string, text: string): void {
    this.#print(`${this.#styled(DIM, "      │")}  ${this.#styled(style, text)}`);
  }

  #styled(sgr: string, text: string): string {
    return this.#color ? `\x1b[${sgr}m${text}\x1b[0m` : text;
  }
}
