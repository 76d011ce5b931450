/**
 * Messages as bytes. All numbers are little-endian: the protocol says "native", and this package is for x86-64.
 *
 * @module
 */

import { MemoryRange } from "../core/memory_range.ts";
import { VERSION } from "./protocol.ts";

/** The length of a message's header, in bytes. */
export const HEADER_SIZE = 12;
/** The longest payload that is accepted, in bytes; the longest there is has 2056. */
export const MAX_PAYLOAD = 4096;

/** The three numbers a message begins with. */
export interface MessageHeader {
  /** Which request, or which it answers. */
  readonly request: number;
  /** Version and flags. */
  readonly flags: number;
  /** The length of the payload in bytes. */
  readonly size: number;
}

/** A message that came in. */
export interface Message extends MessageHeader {
  /** What follows the header. */
  readonly payload: Uint8Array<ArrayBuffer>;
  /** The descriptors that came with it, which are the receiver's to close. */
  readonly fds: readonly number[];
}

/** One region of a memory table, as it is sent. */
export interface WireRegion {
  /** The GPA it begins at. */
  readonly gpa: number;
  /** Its length in bytes. */
  readonly length: number;
  /** The user address it begins at. */
  readonly userAddress: number;
  /** Where in its file it begins, in bytes. */
  readonly fileOffset: number;
}

// Where numbers are put together and taken apart: a view of a small array of its own costs an allocation outside the heap.
const scratch = new DataView(new ArrayBuffer(MAX_PAYLOAD));
const scratchBytes = new Uint8Array(scratch.buffer);

/** `length` bytes that `fill` writes into; they are zeros before. */
function encoded(length: number, fill: (view: DataView) => void): Uint8Array<ArrayBuffer> {
  scratchBytes.fill(0, 0, length);
  fill(scratch);
  return scratchBytes.slice(0, length);
}

/** The numbers of a payload, until the next one is looked at. */
function viewOf(payload: Uint8Array): DataView {
  scratchBytes.set(payload);
  return scratch;
}

/** Puts a message where it is sent from, which is all of `bytes` as well. @returns Its length. */
export function putMessage(
  into: DataView<ArrayBuffer>,
  bytes: Uint8Array<ArrayBuffer>,
  request: number,
  flags: number,
  payload: Uint8Array,
): number {
  into.setUint32(0, request, true);
  into.setUint32(4, VERSION | flags, true);
  into.setUint32(8, payload.length, true);
  if (payload.length > 0) bytes.set(payload, HEADER_SIZE);
  return HEADER_SIZE + payload.length;
}

/** A message as it is sent. */
export function encodeMessage(request: number, flags: number, payload: Uint8Array): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(HEADER_SIZE + payload.length);
  putMessage(new DataView(bytes.buffer), bytes, request, flags, payload);
  return bytes;
}

/** The header at `at`. */
export function decodeHeader(view: DataView, at = 0): MessageHeader {
  return {
    request: view.getUint32(at, true),
    flags: view.getUint32(at + 4, true),
    size: view.getUint32(at + 8, true),
  };
}

/** The payload of most answers, all zeros. One for all, which nobody writes to. */
export const ALL_WELL: Uint8Array<ArrayBuffer> = new Uint8Array(8);
/** No payload. */
export const EMPTY: Uint8Array<ArrayBuffer> = new Uint8Array(0);

/** A 64-bit number. */
export function encodeU64(value: bigint | number): Uint8Array<ArrayBuffer> {
  return encoded(8, (view) => view.setBigUint64(0, BigInt(value), true));
}

/** A 64-bit number, `null` if the payload is of another length. */
export function decodeU64(payload: Uint8Array<ArrayBuffer>): bigint | null {
  return payload.length === 8 ? viewOf(payload).getBigUint64(0, true) : null;
}

/** The state of a vring: its index and a number. */
export function encodeVringState(index: number, num: number): Uint8Array<ArrayBuffer> {
  return encoded(8, (view) => {
    view.setUint32(0, index, true);
    view.setUint32(4, num, true);
  });
}

/** The state of a vring, `null` if the payload is of another length. */
export function decodeVringState(payload: Uint8Array<ArrayBuffer>): { index: number; num: number } | null {
  if (payload.length !== 8) return null;
  const view = viewOf(payload);
  return { index: view.getUint32(0, true), num: view.getUint32(4, true) };
}

/** Where a vring is: user addresses, and for `log` a GPA. */
export function encodeVringAddr(
  addr: { index: number; flags: number; descriptor: number; used: number; available: number; log: number },
): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(40);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, addr.index, true);
  view.setUint32(4, addr.flags, true);
  setU64(view, 8, addr.descriptor);
  setU64(view, 16, addr.used);
  setU64(view, 24, addr.available);
  setU64(view, 32, addr.log);
  return bytes;
}

/** The table of SET_MEM_TABLE: at most eight regions, and only as many bytes as there are. */
export function encodeMemTable(regions: readonly WireRegion[]): Uint8Array<ArrayBuffer> {
  return encoded(8 + 32 * regions.length, (view) => {
    view.setUint32(0, regions.length, true);
    regions.forEach((region, i) => setRegion(view, 8 + 32 * i, region));
  });
}

/** The region of ADD_MEM_REG and REM_MEM_REG. */
export function encodeMemReg(region: WireRegion): Uint8Array<ArrayBuffer> {
  return encoded(40, (view) => setRegion(view, 8, region));
}

function setRegion(view: DataView, at: number, { gpa, length, userAddress, fileOffset }: WireRegion): void {
  setU64(view, at, gpa);
  setU64(view, at + 8, length);
  setU64(view, at + 16, userAddress);
  setU64(view, at + 24, fileOffset);
}

/** The regions of a SET_MEM_TABLE or (with `single`) of ADD_MEM_REG, `null` where the bytes are none. */
export function decodeRegions(payload: Uint8Array<ArrayBuffer>, single: boolean): WireRegion[] | null {
  if (payload.length < 8) return null;
  const view = viewOf(payload);
  const count = single ? 1 : view.getUint32(0, true);
  if (count > 8 || payload.length < 8 + 32 * count) return null;
  return Array.from({ length: count }, (_, i) => {
    const at = 8 + 32 * i;
    const u64 = (offset: number) => Number(view.getBigUint64(at + offset, true));
    return { gpa: u64(0), length: u64(8), userAddress: u64(16), fileOffset: u64(24) };
  });
}

/** The log of SET_LOG_BASE. */
export function encodeLog(size: number, offset: number): Uint8Array<ArrayBuffer> {
  return encoded(16, (view) => {
    setU64(view, 0, size);
    setU64(view, 8, offset);
  });
}

/** What GET_CONFIG and SET_CONFIG carry, in both directions. */
export function encodeConfig(offset: number, flags: number, content: Uint8Array): Uint8Array<ArrayBuffer> {
  return encoded(12 + content.length, (view) => {
    view.setUint32(0, offset, true);
    view.setUint32(4, content.length, true);
    view.setUint32(8, flags, true);
    scratchBytes.set(content, 12);
  });
}

/** A part of the configuration space, `null` if its numbers do not agree with the bytes there are. */
export function decodeConfig(
  payload: Uint8Array<ArrayBuffer>,
): { offset: number; flags: number; content: Uint8Array<ArrayBuffer> } | null {
  if (payload.length < 12) return null;
  const view = viewOf(payload);
  if (view.getUint32(4, true) !== payload.length - 12) return null;
  return { offset: view.getUint32(0, true), flags: view.getUint32(8, true), content: payload.slice(12) };
}

/** The shared memory in which a back end keeps what it is working on. */
export interface InflightDescription {
  /** Its length in bytes. */
  readonly mmapSize: number;
  /** Where in its file it begins, in bytes. */
  readonly mmapOffset: number;
  /** For how many queues it is. */
  readonly numQueues: number;
  /** How long they are. */
  readonly queueSize: number;
}

/** What GET_INFLIGHT_FD and SET_INFLIGHT_FD carry. */
export function encodeInflight(inflight: InflightDescription): Uint8Array<ArrayBuffer> {
  return encoded(20, (view) => {
    setU64(view, 0, inflight.mmapSize);
    setU64(view, 8, inflight.mmapOffset);
    view.setUint16(16, inflight.numQueues, true);
    view.setUint16(18, inflight.queueSize, true);
  });
}

/** A description of in-flight memory, `null` if the bytes are none. Some back ends pad it to 24 bytes. */
export function decodeInflight(payload: Uint8Array<ArrayBuffer>): InflightDescription | null {
  if (payload.length !== 20 && payload.length !== 24) return null;
  const view = viewOf(payload);
  const [mmapSize, mmapOffset] = [safeU64(view, 0), safeU64(view, 8)];
  if (mmapSize === null || mmapOffset === null) return null;
  return { mmapSize, mmapOffset, numQueues: view.getUint16(16, true), queueSize: view.getUint16(18, true) };
}

/** What a back end asks for by SHMEM_MAP and SHMEM_UNMAP. */
export interface ShmemRequest {
  /** Which of the device's shared memory regions. */
  readonly shmid: number;
  /** Where in the file, in bytes. */
  readonly fdOffset: number;
  /** Where in the region, in bytes. */
  readonly shmOffset: number;
  /** How much, in bytes. */
  readonly length: number;
  /** Whether it is mapped for writing. */
  readonly writable: boolean;
}

/** A SHMEM request as bytes. */
export function encodeShmem(request: ShmemRequest): Uint8Array<ArrayBuffer> {
  return encoded(40, (view) => {
    view.setUint8(0, request.shmid);
    setU64(view, 8, request.fdOffset);
    setU64(view, 16, request.shmOffset);
    setU64(view, 24, request.length);
    setU64(view, 32, request.writable ? 1 : 0);
  });
}

/** A SHMEM request, `null` if its numbers cannot be right wherever it goes. */
export function decodeShmem(payload: Uint8Array<ArrayBuffer>): ShmemRequest | null {
  if (payload.length !== 40) return null;
  const view = viewOf(payload);
  const [fdOffset, shmOffset, length] = [safeU64(view, 8), safeU64(view, 16), safeU64(view, 24)];
  const flags = view.getBigUint64(32, true);
  if (fdOffset === null || shmOffset === null || length === null || flags > 1n) return null;
  return { shmid: view.getUint8(0), fdOffset, shmOffset, length, writable: flags === 1n };
}

/** The sizes of a device's shared memory regions in bytes, by shmid; `null` if the bytes say no such thing. */
export function decodeShmemConfig(payload: Uint8Array<ArrayBuffer>): number[] | null {
  if (payload.length < 8 || payload.length % 8 !== 0) return null;
  const view = viewOf(payload);
  const sizes: number[] = [];
  for (let at = 8; at < payload.length && sizes.length < 256; at += 8) {
    const size = safeU64(view, at);
    if (size === null || size % 4096 !== 0) return null;
    sizes.push(size);
  }
  // The number of regions counts those that are used.
  if (sizes.filter((size) => size > 0).length !== view.getUint32(0, true)) return null;
  while (sizes.at(-1) === 0) sizes.pop();
  return sizes;
}

/** The GPA range of a region. */
export function rangeOfRegion({ gpa, length }: WireRegion): MemoryRange {
  return new MemoryRange(gpa, gpa + length);
}

function setU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, value, true);
  view.setUint32(at + 4, value / 2 ** 32, true);
}

/** A 64-bit number from outside, `null` if it is too large to be counted with. */
function safeU64(view: DataView, at: number): number | null {
  const value = view.getBigUint64(at, true);
  return value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : null;
}
