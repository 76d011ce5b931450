/**
 * Guest programs for long mode.
 *
 * @module
 */

import { LongModeCode } from "./long_mode_code.ts";
import { STOP_PORT } from "./vcpu_thread.ts";

/** The port on which programs report what they read. */
export const REPORT_PORT = 0x10;

/** Reads four bytes from each address and writes them to the report port, then stops. */
export function readEach(addresses: readonly number[]): Uint8Array<ArrayBuffer> {
  const code = new LongModeCode();
  for (const address of addresses) code.set("rbx", address).load("rax", "rbx", 4).out(REPORT_PORT);
  return code.out(STOP_PORT).bytes();
}

/** Writes a 64-bit value to each address, then stops. */
export function writeEach(writes: readonly { address: number; value: number | bigint }[]): Uint8Array<ArrayBuffer> {
  const code = new LongModeCode();
  for (const { address, value } of writes) code.set("rbx", address).set("rax", value).store("rbx", "rax", 8);
  return code.out(STOP_PORT).bytes();
}

/** What `pollForever` looks at. */
export interface PollOptions {
  /** The first address. */
  readonly start: number;
  /** One past the last. */
  readonly end: number;
  /** From one address to the next, in bytes. */
  readonly step: number;
  /** The 64-bit values that are right to find. */
  readonly expected: readonly (number | bigint)[];
  /** Where the program adds up how many values it has read: eight bytes of its own. */
  readonly counter: number;
}

/**
 * Reads 64-bit values over a range, again and again, never leaving the guest as long as each is one of those expected.
 * For one that is not, its low half goes to the report port.
 */
export function pollForever(options: PollOptions): Uint8Array<ArrayBuffer> {
  const { start, end, step, expected, counter } = options;
  const code = new LongModeCode().set("r8", counter).set("r9", 1).set("r10", end)
    .label("sweep").set("rbx", start)
    .label("next").load("rax", "rbx", 8);
  expected.forEach((value) => code.set("rcx", value).compareRegister("rax", "rcx").jumpIf("equal", "good"));
  return code.out(REPORT_PORT)
    .label("good").atomicAdd("r8", "r9").add("rbx", step)
    .compareRegister("rbx", "r10").jumpIf("below", "next").jump("sweep")
    .bytes();
}

/** Adds 1 to the 64-bit values over a range, again and again, and never leaves the guest. */
export function touchForever(start: number, end: number, step: number): Uint8Array<ArrayBuffer> {
  return new LongModeCode().set("r9", 1).set("r10", end)
    .label("sweep").set("rbx", start)
    .label("next").atomicAdd("rbx", "r9").add("rbx", step)
    .compareRegister("rbx", "r10").jumpIf("below", "next").jump("sweep")
    .bytes();
}
