/**
 * The guest: a driver that writes each sector of its disk and reads it back, round after round, and tells of each request
 * how it ended. It runs natively, in 64-bit mode.
 *
 * @module
 */

import type { GuestMemory } from "membacking";
import type { KvmVcpu } from "membacking/kvm";
import { LongModeCode, startLongMode } from "../guest/mod.ts";
import {
  CODE,
  DATA,
  DOORBELL_PORT,
  HEADER,
  QUEUE,
  RAM,
  REPORT_PORT,
  SECTOR,
  SECTORS,
  STATUS,
  TABLES,
  WRONG_PORT,
} from "./layout.ts";

const NEXT = 1;
const WRITABLE = 2;

/** Chains in the descriptor table: one that reads from the disk, and one that writes to it. */
const READ_CHAIN = 0;
const WRITE_CHAIN = 3;

/** What the guest writes to a sector: the number of the sector on top of this. */
export const PATTERN = 0x1234_5600;

/** Puts the guest into memory, and makes the vCPU begin there. */
export function startGuest(vcpu: KvmVcpu, memory: GuestMemory): void {
  describe(memory, READ_CHAIN, WRITABLE);
  describe(memory, WRITE_CHAIN, 0);
  startLongMode(vcpu, {
    write: (gpa, bytes) => memory.write(gpa, bytes),
    tables: TABLES,
    code: CODE,
    program: program(),
    ranges: [{ start: RAM.start, end: RAM.end }],
  });
}

/** Writes the descriptors of a request; `data` are the flags of its data. */
function describe(memory: GuestMemory, first: number, data: number): void {
  const parts = [[HEADER, 16, NEXT], [DATA, SECTOR, NEXT | data], [STATUS, 1, WRITABLE]] as const;
  parts.forEach(([gpa, length, flags], i) => {
    const at = QUEUE.descriptors + (first + i) * 16;
    memory.writeBigUint64(at, BigInt(gpa));
    memory.writeUint32(at + 8, length);
    memory.writeUint16(at + 12, flags);
    memory.writeUint16(at + 14, first + i + 1);
  });
}

/** Registers: r8 the index of the next request, r9 the sector. */
function program(): Uint8Array<ArrayBuffer> {
  const code = new LongModeCode().set("r8", 0)
    .label("round").set("r9", 0)
    .label("sector")
    .set("rbx", DATA).set("rax", PATTERN).addRegister("rax", "r9").store("rbx", "rax", 8);
  request(code, "write");
  code.set("rbx", DATA).set("rax", 0).store("rbx", "rax", 8);
  request(code, "read");
  return code
    // Both went well? Then it has to be what was written.
    .set("rbx", STATUS).load("rax", "rbx", 1).compare("rax", 0).jumpIf("notEqual", "on")
    .set("rbx", DATA).load("rax", "rbx", 8).set("rcx", PATTERN).addRegister("rcx", "r9")
    .compareRegister("rax", "rcx").jumpIf("equal", "on").move("rax", "r9").out(WRONG_PORT)
    .label("on").add("r9", 1).compare("r9", SECTORS).jumpIf("below", "sector").jump("round")
    .bytes();
}

/** Makes one request, waits until it is done, and reports its status. */
function request(code: LongModeCode, kind: "read" | "write"): void {
  const [type, chain] = kind === "read" ? [0, READ_CHAIN] : [1, WRITE_CHAIN];
  code.set("rbx", HEADER).set("rax", type).store("rbx", "rax", 4).store("rbx", "r9", 8, 8)
    .set("rbx", STATUS).set("rax", 0xff).store("rbx", "rax", 1);
  // The ring's next entry: two bytes each, so the index is doubled; the bytes behind are written by the next request.
  code.move("rcx", "r8").raw(0x48, 0x83, 0xe1, QUEUE.size - 1) // and rcx, size - 1
    .addRegister("rcx", "rcx").set("rbx", QUEUE.available + 4).addRegister("rbx", "rcx")
    .set("rax", chain).raw(0x66, 0x89, 0x03); // mov [rbx], ax
  // The index, after everything it stands for: the two bytes behind the flags.
  code.add("r8", 1).set("rbx", QUEUE.available + 2).move("rax", "r8").raw(0x66, 0x89, 0x03)
    .out(DOORBELL_PORT)
    .label(`wait ${kind}`).pause().set("rbx", QUEUE.used).load("rax", "rbx", 4)
    .raw(0x48, 0xc1, 0xe8, 16) // shr rax, 16
    .move("rcx", "r8").raw(0x0f, 0xb7, 0xc9) // movzx ecx, cx
    .compareRegister("rax", "rcx").jumpIf("notEqual", `wait ${kind}`);
  code.set("rbx", STATUS).load("rax", "rbx", 1)
    .move("rcx", "r9").raw(0x48, 0xc1, 0xe1, 8).addRegister("rax", "rcx") // shl rcx, 8
    .set("rcx", type << 16).addRegister("rax", "rcx").out(REPORT_PORT);
}
