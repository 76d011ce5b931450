/**
 * A guest program that drives the queue of a virtio disk itself: it writes the descriptors, makes them available, kicks,
 * and polls for the used ring. The owner tells it what to do by a mailbox in guest memory.
 *
 * It runs at user privilege, so natively on every kind of KVM, and leaves the guest for nothing but the kick, which the
 * kernel turns into an event for the back end.
 *
 * @module
 */

import type { GuestMemory } from "membacking";
import { LongModeCode } from "../guest/mod.ts";

/** The size of a sector in bytes. */
export const SECTOR = 512;
/** Where the guest writes to kick: nothing is there. */
export const DOORBELL = 0xd000_0000;

/** Where everything is, as GPAs; all below 256 KiB. */
export const LAYOUT = {
  code: 0x1000,
  /** Page tables, and room for those of some GiB. */
  tables: 0x1_0000,
  mailbox: 0x2_0000,
  descriptor: 0x3_0000,
  available: 0x3_1000,
  used: 0x3_2000,
  /** The header of a request, and the status at its end. */
  header: 0x3_3000,
  status: 0x3_3010,
} as const;

/** How many descriptors the queue has. */
export const QUEUE_SIZE = 8;

/** Offsets in the mailbox, of numbers of eight bytes. */
const MAILBOX = { command: 0, type: 8, sector: 16, buffer: 24, length: 32, count: 40, done: 48, status: 56 } as const;

const [NEXT, WRITE] = [1n, 2n];
/** The last eight bytes of a descriptor. */
const tail = (length: number, flags: bigint, next: number) => BigInt(length) | flags << 32n | BigInt(next) << 48n;

/** The program. */
export function blockDriver(): Uint8Array<ArrayBuffer> {
  const code = new LongModeCode()
    .set("r8", LAYOUT.mailbox).set("r9", LAYOUT.descriptor).set("r10", LAYOUT.available).set("r11", LAYOUT.used)
    .set("r13", LAYOUT.header).set("rdi", DOORBELL)
    .set("r14", 0) // the last command
    .set("r15", 0) // the index of the available ring, in its upper half
    .label("idle").pause()
    .load("rax", "r8", 8, MAILBOX.command).compareRegister("rax", "r14").jumpIf("equal", "idle")
    .move("r14", "rax")
    // The header: type and sector.
    .load("rax", "r8", 4, MAILBOX.type).store("r13", "rax", 8)
    .load("rcx", "r8", 8, MAILBOX.sector).store("r13", "rcx", 8, 8)
    // Three descriptors: header, data, status. For a read (type 0) the device writes the data.
    .set("rcx", LAYOUT.header).store("r9", "rcx", 8).set("rcx", tail(16, NEXT, 1)).store("r9", "rcx", 8, 8)
    .load("rcx", "r8", 8, MAILBOX.buffer).store("r9", "rcx", 8, 16)
    .load("rdx", "r8", 8, MAILBOX.length)
    .compare("rax", 0)
    .set("rcx", tail(0, NEXT, 2)).jumpIf("notEqual", "write")
    .set("rcx", tail(0, NEXT | WRITE, 2))
    .label("write").addRegister("rcx", "rdx").store("r9", "rcx", 8, 24)
    .set("rcx", LAYOUT.status).store("r9", "rcx", 8, 32).set("rcx", tail(1, WRITE, 0)).store("r9", "rcx", 8, 40)
    .load("rbx", "r8", 8, MAILBOX.count)
    .label("again")
    .set("rcx", LAYOUT.status).set("rax", 0xff).store("rcx", "rax", 1)
    // The available ring says descriptor 0 in every place, as it is all zeros; only its index changes.
    .add("r15", 0x1_0000).store("r10", "r15", 4).raw(...MFENCE).store("rdi", "rax", 4)
    .label("wait").pause()
    .load("rax", "r11", 4).raw(...AND_EAX_UPPER_HALF).raw(...MOV_ECX_R15D)
    .compareRegister("rax", "rcx").jumpIf("notEqual", "wait")
    .set("rcx", LAYOUT.status).load("rax", "rcx", 1).compare("rax", 0).jumpIf("notEqual", "done")
    .subtract("rbx", 1).jumpIf("notEqual", "again")
    .label("done").store("r8", "rax", 8, MAILBOX.status).store("r8", "r14", 8, MAILBOX.done)
    .jump("idle");
  return code.bytes();
}

const MFENCE = [0x0f, 0xae, 0xf0] as const;
const AND_EAX_UPPER_HALF = [0x25, 0x00, 0x00, 0xff, 0xff] as const;
const MOV_ECX_R15D = [0x44, 0x89, 0xf9] as const;

/** What the guest is to do. */
export interface BlockRequest {
  /** Whether sectors are read from the disk, or written to it. */
  readonly type: "read" | "write";
  /** The first of them. */
  readonly sector: number;
  /** Where in guest memory they go, or come from. */
  readonly buffer: number;
  /** How many bytes, a multiple of 512; one sector when left out. */
  readonly length?: number;
  /** How often, one after the other; once when left out. */
  readonly count?: number;
}

/** The owner's end of the mailbox. */
export class Mailbox {
  readonly #memory: GuestMemory;
  #command = 0n;

  constructor(memory: GuestMemory) {
    this.#memory = memory;
  }

  /** Has the guest make a request. */
  post({ type, sector, buffer, length = SECTOR, count = 1 }: BlockRequest): void {
    const put = (offset: number, value: number) => this.#memory.writeBigUint64(LAYOUT.mailbox + offset, BigInt(value));
    put(MAILBOX.type, type === "read" ? 0 : 1);
    put(MAILBOX.sector, sector);
    put(MAILBOX.buffer, buffer);
    put(MAILBOX.length, length);
    put(MAILBOX.count, count);
    this.#memory.writeBigUint64(LAYOUT.mailbox + MAILBOX.command, ++this.#command);
  }

  /** The status of the request (0 is good), `null` while it is under way. */
  get status(): number | null {
    const done = this.#memory.readBigUint64(LAYOUT.mailbox + MAILBOX.done);
    if (done !== this.#command) return null;
    return Number(this.#memory.readBigUint64(LAYOUT.mailbox + MAILBOX.status));
  }
}
