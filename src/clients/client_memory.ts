import { GuestMemory } from "../memory/guest_memory.ts";
import type { LockedMemory } from "../memory/locked_memory.ts";
import type { MemoryRange } from "../core/memory_range.ts";
import type { ClientAccess } from "./client_access.ts";
import type { Hold } from "./hold.ts";

/** Guest memory as a client sees it: each access holds changes of the memory map off for as long as it takes. */
export class ClientMemory extends GuestMemory {
  readonly #hold: Hold;

  constructor(access: ClientAccess, hold: Hold) {
    super(access);
    this.#hold = hold;
    hold.invalidate = () => this.invalidate();
  }

  override read(gpa: number, length: number): Uint8Array<ArrayBuffer> {
    this.#hold.enter();
    try {
      return super.read(gpa, length);
    } finally {
      this.#hold.leave();
    }
  }

  override readInto(gpa: number, into: Uint8Array): void {
    this.#hold.enter();
    try {
      super.readInto(gpa, into);
    } finally {
      this.#hold.leave();
    }
  }

  override write(gpa: number, bytes: Uint8Array): void {
    this.#hold.enter();
    try {
      super.write(gpa, bytes);
    } finally {
      this.#hold.leave();
    }
  }

  override fill(gpa: number, length: number, value: number): void {
    this.#hold.enter();
    try {
      super.fill(gpa, length, value);
    } finally {
      this.#hold.leave();
    }
  }

  override readUint8(gpa: number): number {
    this.#hold.enter();
    try {
      return super.readUint8(gpa);
    } finally {
      this.#hold.leave();
    }
  }

  override readUint16(gpa: number): number {
    this.#hold.enter();
    try {
      return super.readUint16(gpa);
    } finally {
      this.#hold.leave();
    }
  }

  override readUint32(gpa: number): number {
    this.#hold.enter();
    try {
      return super.readUint32(gpa);
    } finally {
      this.#hold.leave();
    }
  }

  override readBigUint64(gpa: number): bigint {
    this.#hold.enter();
    try {
      return super.readBigUint64(gpa);
    } finally {
      this.#hold.leave();
    }
  }

  override writeUint8(gpa: number, value: number): void {
    this.#hold.enter();
    try {
      super.writeUint8(gpa, value);
    } finally {
      this.#hold.leave();
    }
  }

  override writeUint16(gpa: number, value: number): void {
    this.#hold.enter();
    try {
      super.writeUint16(gpa, value);
    } finally {
      this.#hold.leave();
    }
  }

  override writeUint32(gpa: number, value: number): void {
    this.#hold.enter();
    try {
      super.writeUint32(gpa, value);
    } finally {
      this.#hold.leave();
    }
  }

  override writeBigUint64(gpa: number, value: bigint): void {
    this.#hold.enter();
    try {
      super.writeBigUint64(gpa, value);
    } finally {
      this.#hold.leave();
    }
  }

  override compareExchangeUint32(gpa: number, expected: number, replacement: number): number {
    this.#hold.enter();
    try {
      return super.compareExchangeUint32(gpa, expected, replacement);
    } finally {
      this.#hold.leave();
    }
  }

  override lock(range: MemoryRange, options: { write?: boolean } = {}): LockedMemory {
    this.#hold.enter();
    try {
      return super.lock(range, options);
    } finally {
      this.#hold.leave();
    }
  }
}
