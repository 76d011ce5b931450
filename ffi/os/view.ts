/**
 * Host memory as an `ArrayBuffer`, and its revocation.
 *
 * Why it is safe: it is not, by itself. A view is only as good as the mapping under it, so whoever makes one must
 * revoke it before the mapping goes, or loses the protection a store needs, or shrinks with its file. Revoking detaches
 * every typed array on the buffer: a late read gives `undefined`, a late write does nothing. What is checked here is
 * what would take the process down at once: addresses and lengths that are no integers.
 *
 * @module
 */

import { hex } from "../../src/core/hex.ts";
import { checkNumber } from "../../src/core/memory_range.ts";

/**
 * The `length` bytes of host memory from `address` on. No copy is made.
 *
 * Make one and keep it: each counts as external memory in the garbage collector's accounts. The caller guarantees that
 * the whole range stays mapped, and accessible where it is accessed, until `revokeView`.
 *
 * @throws {RangeError} If a number is not an integer, the address is 0, or the range leaves 2^47.
 */
export function hostView(address: number, length: number): ArrayBuffer {
  checkNumber(address, "Address");
  checkNumber(length, "Length");
  if (address === 0 || address + length > 2 ** 47) {
    throw new RangeError(`There is no host memory of ${hex(length)} bytes at ${hex(address)}`);
  }
  // SAFETY: an address in user space; that memory is there is the caller's promise.
  const pointer = Deno.UnsafePointer.create(BigInt(address));
  if (pointer === null) throw new RangeError("There is no host memory at 0x0");
  return Deno.UnsafePointerView.getArrayBuffer(pointer, length);
}

/**
 * Detaches `buffer`, so that nothing reaches the memory through it any more. A second time is harmless.
 *
 * What the language itself does is used, not what the buffer says: a property of its own named `transfer` or `detached`
 * would otherwise leave the memory reachable. And the result is looked at.
 *
 * @throws {TypeError} If the buffer was transferred away (`postMessage` with a transfer list): then whoever has it now
 * still reaches the memory, and it must stay mapped.
 */
export function revokeView(buffer: ArrayBuffer): void {
  if (revoked.has(buffer)) return;
  if (isDetached(buffer)) {
    throw new TypeError("A view of memory was transferred away and cannot be revoked, so its memory must stay");
  }
  apply(transfer, buffer, [0]);
  if (!isDetached(buffer)) throw new TypeError("A view of memory cannot be revoked, so its memory must stay");
  revoked.add(buffer);
}

/** Whether `buffer` has been revoked or transferred away, whatever it says itself. */
export function isDetached(buffer: ArrayBuffer): boolean {
  return apply(getDetached, buffer, []) as boolean;
}

const { apply } = Reflect;
const { transfer } = ArrayBuffer.prototype;
const getDetached = Object.getOwnPropertyDescriptor(ArrayBuffer.prototype, "detached")!.get!;

const revoked = new WeakSet<ArrayBuffer>();

/**
 * The address of what a typed array has. It stays where it is for as long as something refers to its buffer.
 */
export function addressOf(bytes: ArrayBufferView<ArrayBuffer>): number {
  // SAFETY: an address alone; what is done with it is justified where it is used.
  return Number(Deno.UnsafePointer.value(Deno.UnsafePointer.of(bytes)));
}
