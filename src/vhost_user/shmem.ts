/**
 * Shared memory regions of a device (DAX windows): what a back end maps there.
 *
 * @module
 */

import { Mappable } from "../../ffi/files/mappable.ts";
import { MembackingError } from "../core/errors.ts";
import { hex } from "../core/hex.ts";
import { checkNumber, PAGE_SIZE } from "../core/memory_range.ts";
import { VhostUserError } from "./errors.ts";
import { decodeShmem, type Message, type ShmemRequest } from "./message.ts";

/** Where the mappings of a back end go: a `DeviceMemory` fits, made with `holes: "fault"`. */
export interface ShmemWindow {
  /** Its length in bytes. */
  readonly length: number;
  /** Maps a part of a file. */
  map(
    mapping: { offset: number; mappable: Mappable; fileOffset?: number; length?: number; writable?: boolean },
  ): void;
  /** Takes what is mapped away. */
  unmap(offset: number, length: number): void;
}

interface Window {
  readonly memory: ShmemWindow;
  /** What the back end has mapped: lengths by offset. */
  readonly mappings: Map<number, number>;
}

/** The windows of one device, and what its back end has mapped into them. */
export class ShmemWindows {
  readonly #windows = new Map<number, Window>();

  /** Says where the mappings of region `shmid` go. */
  provide(shmid: number, memory: ShmemWindow): void {
    checkNumber(shmid, "Shared memory id");
    if (shmid > 0xff) throw new RangeError(`A shared memory id has eight bits, got ${shmid}`);
    if (this.#windows.has(shmid)) throw new TypeError(`Shared memory region ${shmid} has a window already`);
    this.#windows.set(shmid, { memory, mappings: new Map() });
  }

  /**
   * Maps what a back end asks for, as strictly as the specification wants it: only where nothing is mapped.
   *
   * A mapping that begins in its file and reaches beyond its end is mapped as far as there is a file; that is what DAX
   * drivers ask for, whose mappings are 2 MiB however short the file is. The rest stays a hole. A length that ends within a
   * page means all of the page.
   *
   * @throws {VhostUserError} `"refused"` if it is not to be had.
   * @throws {MembackingError} If the window cannot map it.
   */
  map(message: Message): void {
    const request = requestOf("SHMEM_MAP", message);
    const { memory, mappings } = this.#window("SHMEM_MAP", request);
    const { shmOffset, length, fdOffset, writable } = request;
    for (const [offset, there] of mappings) {
      if (shmOffset < offset + there && offset < shmOffset + length) {
        throw refused("SHMEM_MAP", `${rangeOf(request)} is mapped in part, from ${hex(offset)} on`);
      }
    }
    const [fd] = message.fds;
    if (fd === undefined || message.fds.length !== 1) {
      throw refused("SHMEM_MAP", `it needs one descriptor and has ${message.fds.length}`);
    }
    using mappable = Mappable.fromFd(fd);
    const there = Math.ceil(mappable.size / PAGE_SIZE) * PAGE_SIZE - fdOffset;
    if (there <= 0) throw refused("SHMEM_MAP", `offset ${hex(fdOffset)} is beyond the end of the file`);
    memory.map({ offset: shmOffset, mappable, fileOffset: fdOffset, length: Math.min(length, there), writable });
    mappings.set(shmOffset, length);
  }

  /**
   * Takes exactly one mapping away.
   *
   * @throws {VhostUserError} `"refused"` if the request does not name one.
   * @throws {MembackingError} If the window cannot do it.
   */
  unmap(message: Message): void {
    const request = requestOf("SHMEM_UNMAP", message);
    const { memory, mappings } = this.#window("SHMEM_UNMAP", request);
    const { shmOffset, length } = request;
    if (mappings.get(shmOffset) !== length) {
      throw refused("SHMEM_UNMAP", `${rangeOf(request)} is not one whole mapping`);
    }
    memory.unmap(shmOffset, length);
    mappings.delete(shmOffset);
  }

  /** Takes everything away: the device was reset, or another back end has taken its place. Returns what failed. */
  clear(): unknown[] {
    const failures: unknown[] = [];
    for (const { memory, mappings } of this.#windows.values()) {
      for (const [offset, length] of mappings) {
        try {
          memory.unmap(offset, length);
        } catch (error) {
          failures.push(error);
        }
      }
      mappings.clear();
    }
    return failures;
  }

  #window(name: string, request: ShmemRequest): Window {
    const window = this.#windows.get(request.shmid);
    if (window === undefined) throw refused(name, `there is no shared memory region ${request.shmid}`);
    const { shmOffset, length, fdOffset } = request;
    if (length === 0) throw refused(name, "it has no length");
    if (shmOffset % PAGE_SIZE !== 0 || fdOffset % PAGE_SIZE !== 0) {
      throw refused(name, `its offsets ${hex(shmOffset)} and ${hex(fdOffset)} are not where pages begin`);
    }
    if (length > window.memory.length || shmOffset > window.memory.length - length) {
      throw refused(name, `${rangeOf(request)} reaches beyond region ${request.shmid} of ${hex(window.memory.length)}`);
    }
    return window;
  }
}

/** Whether an error says that a request of a back end was not granted, and nothing worse. */
export function isRefusal(error: unknown): boolean {
  return error instanceof MembackingError || error instanceof RangeError;
}

function requestOf(name: string, { payload }: Message): ShmemRequest {
  const request = decodeShmem(payload);
  if (request === null) throw refused(name, `it has numbers that make no sense`);
  // As mmap and munmap take it; vhost-device-media asks for buffers of 112.5 pages.
  return { ...request, length: Math.ceil(request.length / PAGE_SIZE) * PAGE_SIZE };
}

function refused(name: string, why: string): VhostUserError {
  return new VhostUserError("refused", name, `${name} was refused: ${why}`);
}

function rangeOf({ shmOffset, length }: ShmemRequest): string {
  return `${hex(shmOffset)}-${hex(shmOffset + length)}`;
}
