/**
 * Checks of what users bring along, at the door: a target without a method would be found out in the middle of a
 * request, when it is late.
 *
 * @module
 */

import type { Partition } from "../core/targets.ts";
import type { DmaTarget } from "./targets.ts";

/** Throws unless `priority` is one. */
export function checkPriority(priority: number, what: string): void {
  if (Number.isInteger(priority) && priority >= 0 && priority <= 255) return;
  throw new RangeError(`${what} must be an integer from 0 to 255, got ${String(priority)}`);
}

/** Throws unless `value` is an object that has all of `methods`. */
export function checkMethods(value: unknown, what: string, methods: readonly string[]): void {
  if ((typeof value !== "object" && typeof value !== "function") || value === null) {
    throw new TypeError(`${what} must be an object, got ${value === null ? "null" : typeof value}`);
  }
  for (const method of methods) {
    if (typeof (value as Record<string, unknown>)[method] === "function") continue;
    throw new TypeError(`${what} needs a method ${method}`);
  }
}

/** Throws unless `partition` can be told of ranges, and says how many in a number that makes sense. */
export function checkPartition(partition: Partition): void {
  checkMethods(partition, "A partition", ["mapRange", "unmapRange"]);
  const { capacity } = partition;
  if (capacity === undefined || capacity === Infinity || (Number.isSafeInteger(capacity) && capacity >= 0)) return;
  throw new RangeError(`The capacity of a partition must be a non-negative integer, got ${capacity}`);
}

/** Throws unless `target` can be told of mappings. */
export function checkDmaTarget(target: DmaTarget): void {
  checkMethods(target, "A DMA target", ["mapDma", "unmapDma"]);
}
