/**
 * A second freeze that fails when it has written to the file already, for want of address space.
 *
 * @module
 */

import { GuestMemoryManager, MemoryRange } from "membacking";
import { littleAddressSpace } from "../vm/children/limits.ts";

using guest = GuestMemoryManager.create({ maxAddress: 2 ** 24, ram: [{ ranges: [MemoryRange.of(0, 0x20_0000)] }] });
guest.memory.fill(0, 0x20_0000, 1);
guest.freeze()[Symbol.dispose]();
guest.memory.fill(0x3000, 0x1000, 9);
const attempt = (what: () => unknown): string => {
  try {
    what();
    return "done";
  } catch (error) {
    return `${error}`;
  }
};
const frozen = attempt(() => {
  using _little = littleAddressSpace(2 ** 20);
  guest.freeze();
});
console.log(frozen.includes("the request was undone") ? "undone" : frozen);
console.log(attempt(() => guest.rollback()), guest.memory.readUint8(0x3000));
guest.freeze()[Symbol.dispose]();
guest.memory.fill(0x3000, 0x1000, 7);
console.log(attempt(() => guest.rollback()), guest.memory.readUint8(0x3000));
