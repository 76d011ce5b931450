/**
 * virtio-blk: a disk, whose image is a file here.
 *
 * Specified in section 5.2 of the virtio specification.
 *
 * @module
 */

import type { GuestMemory, Mappable } from "membacking";
import type { VirtioDevice, VirtioHost } from "./device.ts";
import { type Buffer, type Chain, gather, lengthOf, RingError, scatter } from "./queue.ts";

const SECTOR = 512;
const HEADER = 16;
const READ_ONLY = 1n << 5n;
const FLUSH = 1n << 9n;
const REQUEST = { read: 0, write: 1, flush: 4, identity: 8 } as const;
const DONE = 0;
const FAILED = 1;
const UNSUPPORTED = 2;
const IDENTITY = "membacking";

/** The disk. */
export class VirtioBlk implements VirtioDevice {
  readonly kind = 2;
  readonly queues = 1;
  readonly features: bigint;
  readonly configuration = new Uint8Array(64);
  readonly #image: Mappable;
  #host: VirtioHost | null = null;

  /** A disk of whole sectors of `image`, which stays the caller's; read-only if that is. */
  constructor(image: Mappable) {
    this.#image = image;
    this.features = FLUSH | (image.writable ? 0n : READ_ONLY);
    new DataView(this.configuration.buffer).setBigUint64(0, BigInt(Math.floor(image.size / SECTOR)), true);
  }

  start(host: VirtioHost): void {
    this.#host = host;
  }

  reset(): void {
    this.#host = null;
  }

  notified(index: number): void {
    const host = this.#host;
    const queue = host?.queue(index);
    if (!host || !queue) return;
    for (const chain of queue.requests()) queue.push(chain, this.#serve(host.memory, chain));
    host.finished(queue);
  }

  /** Serves a request and returns how many bytes it wrote, the status included. */
  #serve(memory: GuestMemory, { readable, writable }: Chain): number {
    const header = gather(memory, readable, HEADER);
    const room = lengthOf(writable) - 1;
    if (header.length < HEADER || room < 0) throw new RingError("A request of a disk has a header and a status");
    const view = new DataView(header.buffer);
    const offset = Number(view.getBigUint64(8, true)) * SECTOR;
    const answer = (status: number, written: number) => {
      scatter(memory, skip(writable, room), new Uint8Array([status]));
      return written + 1;
    };
    switch (view.getUint32(0, true)) {
      case REQUEST.read:
        if (offset + room > this.#image.size) return answer(FAILED, 0);
        transfer(skip(writable, 0, room), offset, (gpa, at, length) => memory.readFrom(this.#image, at, gpa, length));
        return answer(DONE, room);
      case REQUEST.write: {
        const data = skip(readable, HEADER);
        if (offset + lengthOf(data) > this.#image.size || !this.#image.writable) return answer(FAILED, 0);
        transfer(data, offset, (gpa, at, length) => memory.writeTo(this.#image, at, gpa, length));
        return answer(DONE, 0);
      }
      case REQUEST.flush:
        return answer(DONE, 0); // what was written is the host's already
      case REQUEST.identity:
        return answer(
          DONE,
          scatter(memory, writable, new TextEncoder().encode(IDENTITY.padEnd(Math.min(room, 20), "\0"))),
        );
      default:
        return answer(UNSUPPORTED, 0);
    }
  }
}

function transfer(
  buffers: readonly Buffer[],
  offset: number,
  move: (gpa: number, fileOffset: number, length: number) => void,
): void {
  let at = offset;
  for (const { gpa, length } of buffers) {
    move(gpa, at, length);
    at += length;
  }
}

/** Buffers without their first `bytes`, and at most `most` of the rest. */
function skip(buffers: readonly Buffer[], bytes: number, most = Infinity): Buffer[] {
  const rest: Buffer[] = [];
  for (const { gpa, length } of buffers) {
    const skipped = Math.min(bytes, length);
    const taken = Math.min(length - skipped, most);
    if (taken > 0) rest.push({ gpa: gpa + skipped, length: taken });
    bytes -= skipped;
    most -= taken;
  }
  return rest;
}
