/**
 * A guest that takes a while to get warm, and then answers a question quickly: it fills a table, says that it is ready,
 * and adds up the table times the number it finds in its memory. It runs natively, at user privilege.
 *
 * @module
 */

import { LongModeCode, STOP_PORT } from "../guest/mod.ts";

/** Where it writes that it is warm. */
export const READY_PORT = 0x20;
/** What it reads and writes, guest-physical addresses. */
export const AT = { input: 0x20_0000, result: 0x20_0008, table: 0x40_0000 } as const;
const TABLES = 0x1_0000;
const CODE = 0x1000;

/** How large the guest is. */
export interface WarmGuestSize {
  /** How much RAM it has, in bytes. */
  readonly ram: number;
  /** How many pages its table has. */
  readonly pages: number;
  /** How often it goes over its table until it is warm. */
  readonly rounds: number;
  /** How many pages it writes to answer. */
  readonly written: number;
}

/** What it answers to `input`. */
export function answer({ pages, rounds }: WarmGuestSize, input: number): bigint {
  let sum = 0n;
  for (let page = 0; page < pages; page++) sum += BigInt(rounds * (page + 1)) * BigInt(input);
  return BigInt.asUintN(64, sum);
}

/** The guest, to be started with `startLongMode`. */
export function warmGuest({ ram, pages, rounds, written }: WarmGuestSize) {
  const end = AT.table + pages * 0x1000;
  const code = new LongModeCode()
    // Each page of the table gets `rounds` times its number, counted from 1.
    .set("r10", end).set("r12", rounds)
    .label("round").set("rbx", AT.table).set("r9", 1)
    .label("fill").atomicAdd("rbx", "r9").add("r9", 1).add("rbx", 0x1000)
    .compareRegister("rbx", "r10").jumpIf("below", "fill")
    .subtract("r12", 1).compare("r12", 0).jumpIf("above", "round")
    .out(READY_PORT)
    .set("rbx", AT.input).load("r11", "rbx", 8)
    .set("rbx", AT.table).set("r8", 0)
    .label("next").load("rcx", "rbx", 8)
    .raw(0x49, 0x0f, 0xaf, 0xcb) // imul rcx, r11
    .addRegister("r8", "rcx").add("rbx", 0x1000)
    .compareRegister("rbx", "r10").jumpIf("below", "next")
    .set("rbx", AT.result).set("r9", AT.result + written * 0x1000)
    .label("store").store("rbx", "r8", 8).add("rbx", 0x1000)
    .compareRegister("rbx", "r9").jumpIf("below", "store")
    .out(STOP_PORT);
  return { tables: TABLES, code: CODE, program: code.bytes(), ranges: [{ start: 0, end: ram }] };
}
