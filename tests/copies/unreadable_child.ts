/**
 * Saves a snapshot into the directory named, and prints what that throws: what `save_failures.test.ts` runs without the
 * right to read everything.
 *
 * @module
 */

import { GuestMemoryManager, MemoryRange } from "membacking";

const [directory = ""] = Deno.args;
using guest = GuestMemoryManager.create({ maxAddress: 2 ** 20, ram: [{ ranges: [new MemoryRange(0, 2 ** 20)] }] });
try {
  using _snapshot = await guest.save(`${directory}/a`);
  console.log("saved");
} catch (error) {
  console.log(error instanceof Error ? error.name : error);
}
