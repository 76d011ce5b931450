import { type GuestMemory, GuestMemoryError, type Mappable } from "membacking";
import type { Buffer, Chain } from "./split_queue.ts";

const SECTOR = 512;
const READ = 0;
const WRITE = 1;

const STATUS = { ok: 0, ioError: 1, unsupported: 2 } as const;

/** A disk: a header of 16 bytes, data, and a byte of status, as virtio-blk has it. */
export class BlockDevice {
  readonly #memory: GuestMemory;
  readonly #disk: Mappable;

  constructor(memory: GuestMemory, disk: Mappable) {
    this.#memory = memory;
    this.#disk = disk;
  }

  /** Serves one request. Returns how many bytes were written to guest memory. */
  serve({ readable, writable }: Chain): number {
    const [header, ...toDisk] = readable;
    const status = writable.at(-1);
    if (header === undefined || header.length < 16 || status === undefined || status.length < 1) return 0;
    const fromDisk = writable.slice(0, -1);
    let result: number = STATUS.ok;
    let written = 0;
    try {
      const type = this.#memory.readUint32(header.gpa);
      const offset = Number(this.#memory.readBigUint64(header.gpa + 8)) * SECTOR;
      if (type === READ) written = this.#transfer("readFrom", fromDisk, offset);
      else if (type === WRITE) this.#transfer("writeTo", toDisk, offset);
      else result = STATUS.unsupported;
    } catch (error) {
      // A sector the disk does not have, or a buffer that is no memory: the driver's mistake, and its to be told.
      if (!(error instanceof RangeError || error instanceof GuestMemoryError)) throw error;
      result = STATUS.ioError;
    }
    this.#memory.writeUint8(status.gpa, result);
    return written + 1;
  }

  /** Moves the buffers from or to the disk, by the kernel: the bytes never are JavaScript's. */
  #transfer(direction: "readFrom" | "writeTo", buffers: readonly Buffer[], offset: number): number {
    let moved = 0;
    for (const { gpa, length } of buffers) {
      this.#memory[direction](this.#disk, offset + moved, gpa, length);
      moved += length;
    }
    return moved;
  }
}
