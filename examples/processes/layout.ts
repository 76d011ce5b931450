/**
 * Where things are in the guest, as the three sides know it: the VMM, the disk's process and the guest.
 *
 * @module
 */

import { MemoryRange } from "membacking";
import type { QueueLayout } from "../virtqueue/split_queue.ts";

/** All of the guest's RAM. */
export const RAM = new MemoryRange(0, 0x40_0000);
/** The guest's page tables and code. */
export const TABLES = 0x1_0000;
export const CODE = 0x20_0000;

/** The queue, in guest memory as a driver would have put it there. */
export const QUEUE: QueueLayout = { size: 8, descriptors: 0x30_0000, available: 0x30_1000, used: 0x30_2000 };
/** The one request there is at a time: a header, a sector of data, a byte of status. */
export const HEADER = 0x31_0000;
export const DATA = 0x31_1000;
export const STATUS = 0x31_2000;

/** Sectors of the disk, in bytes and in number. */
export const SECTOR = 512;
export const SECTORS = 8;

/** The guest has made a request available. */
export const DOORBELL_PORT = 0x20;
/** The guest tells how a request ended: its kind in bit 16, the sector in bits 8 to 15, the status below. */
export const REPORT_PORT = 0x10;
/** The guest tells that a sector does not hold what it wrote. */
export const WRONG_PORT = 0x11;

/** What the guest reports. */
export interface Report {
  readonly kind: "read" | "write";
  readonly sector: number;
  readonly ok: boolean;
}

/** What a value written to `REPORT_PORT` says. */
export function reportOf(value: number): Report {
  return { kind: value >> 16 === 0 ? "read" : "write", sector: value >> 8 & 0xff, ok: (value & 0xff) === 0 };
}
