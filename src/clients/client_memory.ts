import { forgetMap, GuestMemory } from "../memory/guest_memory.ts";
import type { LockedMemory, LockOptions } from "../memory/locked_memory.ts";
import type { Mappable } from "../../ffi/files/mappable.ts";
import type { MemoryRange } from "../core/memory_range.ts";
import type { MemoryPiece } from "../memory/memory_piece.ts";
import type { ClientAccess } from "./client_access.ts";
import type { Hold } from "./hold.ts";

/** Guest memory as a client sees it: each access holds changes of the memory map off for as long as it takes. */
export class ClientMemory extends GuestMemory {
  readonly #hold: Hold;

  constructor(access: ClientAccess, hold: Hold) {
    super(access);
    this.#hold = hold;
    hold.invalidate = () => forgetMap(this);
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

  override loadUint16(gpa: number): number {
    return this.#during(() => super.loadUint16(gpa));
  }

  override storeUint16(gpa: number, value: number): void {
    this.#during(() => super.storeUint16(gpa, value));
  }

  override compareExchangeUint16(gpa: number, expected: number, replacement: number): number {
    return this.#during(() => super.compareExchangeUint16(gpa, expected, replacement));
  }

  override loadUint32(gpa: number): number {
    return this.#during(() => super.loadUint32(gpa));
  }

  override storeUint32(gpa: number, value: number): void {
    this.#during(() => super.storeUint32(gpa, value));
  }

  override compareExchangeUint32(gpa: number, expected: number, replacement: number): number {
    return this.#during(() => super.compareExchangeUint32(gpa, expected, replacement));
  }

  override loadBigUint64(gpa: number): bigint {
    return this.#during(() => super.loadBigUint64(gpa));
  }

  override storeBigUint64(gpa: number, value: bigint): void {
    this.#during(() => super.storeBigUint64(gpa, value));
  }

  override compareExchangeBigUint64(gpa: number, expected: bigint, replacement: bigint): bigint {
    return this.#during(() => super.compareExchangeBigUint64(gpa, expected, replacement));
  }

  override readFrom(file: Mappable, fileOffset: number, gpa: number, length: number): void {
    this.#during(() => super.readFrom(file, fileOffset, gpa, length));
  }

  override writeTo(file: Mappable, fileOffset: number, gpa: number, length: number): void {
    this.#during(() => super.writeTo(file, fileOffset, gpa, length));
  }

  override find(gpa: number): MemoryPiece | null {
    return this.#during(() => super.find(gpa));
  }

  override pieces(range?: MemoryRange): IterableIterator<MemoryPiece> {
    return this.#during(() => super.pieces(range));
  }

  override isMapped(gpa: number, length: number, options: { write?: boolean } = {}): boolean {
    return this.#during(() => super.isMapped(gpa, length, options));
  }

  override hostAddress(gpa: number, length: number, options: { write?: boolean } = {}): number {
    return this.#during(() => super.hostAddress(gpa, length, options));
  }

  override lock(range: MemoryRange, options: LockOptions = {}): LockedMemory {
    return this.#during(() => super.lock(range, options));
  }

  #during<T>(act: () => T): T {
    this.#hold.enter();
    try {
      return act();
    } finally {
      this.#hold.leave();
    }
  }
}
