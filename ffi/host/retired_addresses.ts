/**
 * Host addresses that must not be given to anything else: late input and output into locks that are gone may still write
 * there.
 *
 * Why it is safe: they stay reserved and inaccessible, so whoever writes there gets EFAULT. Only where the process could
 * not go on otherwise, since it has no addresses or no kernel mappings left, those that have been waiting longest are
 * given back to it.
 *
 * @module
 */

import { releaseAddresses, retireAddresses } from "../os/address_space.ts";

/** The oldest first. */
let retired: { readonly address: number; readonly length: number }[] = [];

/** Keeps `[address, address + length)` from being used again. */
export function retire(address: number, length: number): void {
  retireAddresses(address, length);
  retired.push({ address, length });
}

/** How many ranges are retired. */
export function retiredCount(): number {
  return retired.length;
}

/** Gives the older half back, but for the newest `kept` in any case. Returns whether there were any to give. */
export function giveBackOldest(kept: number): boolean {
  const count = Math.min(Math.ceil(retired.length / 2), retired.length - kept);
  if (count <= 0) return false;
  const oldest = retired.slice(0, count);
  retired = retired.slice(count);
  for (const { address, length } of oldest) releaseAddresses(address, length);
  return true;
}
