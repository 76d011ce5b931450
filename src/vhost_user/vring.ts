/**
 * Vrings: where the parts of one lie, and the messages that start one.
 *
 * @module
 */

import type { EventFd } from "../../ffi/os/event_fd.ts";
import { hex } from "../core/hex.ts";
import { checkNumber } from "../core/memory_range.ts";
import { encodeU64, encodeVringAddr, encodeVringState } from "./message.ts";
import { MAX_VRINGS, NO_FD, type RequestName, VRING_F_LOG } from "./protocol.ts";

/** What a vring consists of. All addresses are GPAs. */
export interface VringOptions {
  /** How many descriptors it has: a power of two for split rings, at most 32768. */
  readonly size: number;
  /** Where the descriptor table is (packed: the descriptor ring); a multiple of 16. */
  readonly descriptor: number;
  /** Where the available ring is (packed: the driver's event suppression); a multiple of 2, packed: 4. */
  readonly available: number;
  /** Where the used ring is (packed: the device's event suppression); a multiple of 4. */
  readonly used: number;
  /** The index of the next descriptor the back end takes: what `stopVring` returned, 0 (the default) for a new ring. */
  readonly base?: number;
  /** What the guest signals for new buffers (`KvmVm.ioeventfd`). Left out: the back end polls, where it can do that. */
  readonly kick?: EventFd;
  /** What the back end signals for used buffers (`KvmVm.irqfd`). Left out: the guest polls. */
  readonly call?: EventFd;
  /** What the back end signals when it finds the ring in disorder. */
  readonly err?: EventFd;
  /** Whether it is enabled as soon as it is started, `true` when left out. */
  readonly enabled?: boolean;
}

/** One message, before it is sent. */
export interface Outgoing {
  /** Which request. */
  readonly request: RequestName;
  /** What follows the header. */
  readonly payload: Uint8Array<ArrayBuffer>;
  /** Descriptors to go along, which stay the sender's. */
  readonly fds: readonly number[];
}

/** One part of a vring in guest memory. */
export interface VringPart {
  /** Its name in messages. */
  readonly name: "descriptor" | "available" | "used";
  /** The GPA it begins at. */
  readonly gpa: number;
  /** Its length in bytes. */
  readonly length: number;
}

/**
 * The parts of a vring, checked for everything that can be checked without knowing the memory map.
 *
 * @throws {RangeError} If a number is out of its range or an address not aligned.
 */
export function vringParts(index: number, ring: VringOptions, packed: boolean): readonly VringPart[] {
  checkVringIndex(index);
  const { size } = ring;
  checkNumber(size, "Vring size");
  if (size === 0 || size > 0x8000) throw new RangeError(`A vring has 1 to 32768 descriptors, got ${size}`);
  if (!packed && !Number.isInteger(Math.log2(size))) {
    throw new RangeError(`The size of a split vring is a power of two, got ${size}`);
  }
  const parts = [
    { name: "descriptor", gpa: ring.descriptor, length: 16 * size, alignment: 16 },
    { name: "available", gpa: ring.available, length: packed ? 4 : 6 + 2 * size, alignment: packed ? 4 : 2 },
    { name: "used", gpa: ring.used, length: packed ? 4 : 6 + 8 * size, alignment: 4 },
  ] as const;
  for (const { name, gpa, alignment } of parts) {
    checkNumber(gpa, `The ${name} address`);
    if (gpa % alignment !== 0) {
      throw new RangeError(`The ${name} address ${hex(gpa)} is not a multiple of ${alignment}`);
    }
  }
  if (ring.base !== undefined) checkNumber(ring.base, "Vring base");
  if ((ring.base ?? 0) > 0xffff_ffff) throw new RangeError(`A vring base has 32 bits, got ${ring.base}`);
  return parts;
}

/** Throws unless `index` can be that of a vring. */
export function checkVringIndex(index: number): void {
  checkNumber(index, "Vring index");
  if (index >= MAX_VRINGS) throw new RangeError(`A vring index is below ${MAX_VRINGS}, got ${index}`);
}

/** How a vring is to be started. */
export interface VringStart {
  /** Its index. */
  readonly index: number;
  /** What it consists of. */
  readonly ring: VringOptions;
  /** The index of the next descriptor to be taken. */
  readonly base: number;
  /** The user address of GPA 0: user addresses are GPAs plus this. */
  readonly userBase: number;
  /** Whether writes to the used ring are logged. */
  readonly log: boolean;
  /** Whether it is enabled; `null` where the back end has no protocol features, and enables rings by itself. */
  readonly enabled: boolean | null;
}

/** The message that says where a vring is. */
export function vringAddr({ index, ring, userBase, log }: VringStart): Outgoing {
  const payload = encodeVringAddr({
    index,
    flags: log ? VRING_F_LOG : 0,
    descriptor: userBase + ring.descriptor,
    used: userBase + ring.used,
    available: userBase + ring.available,
    log: log ? ring.used : 0,
  });
  return { request: "SET_VRING_ADDR", payload, fds: [] };
}

/** The messages that start a vring, in order. */
export function vringStart(start: VringStart): Outgoing[] {
  const { index, ring, base, enabled } = start;
  const plain = (request: RequestName, num: number): Outgoing => ({
    request,
    payload: encodeVringState(index, num),
    fds: [],
  });
  const event = (request: RequestName, fd: EventFd | undefined): Outgoing => ({
    request,
    payload: encodeU64(index | (fd === undefined ? NO_FD : 0)),
    fds: fd === undefined ? [] : [fd.fd],
  });
  return [
    plain("SET_VRING_NUM", ring.size),
    plain("SET_VRING_BASE", base),
    vringAddr(start),
    ...(ring.err === undefined ? [] : [event("SET_VRING_ERR", ring.err)]),
    event("SET_VRING_CALL", ring.call),
    // From here on the back end may be at work.
    event("SET_VRING_KICK", ring.kick),
    ...(enabled === null ? [] : [plain("SET_VRING_ENABLE", enabled ? 1 : 0)]),
  ];
}
