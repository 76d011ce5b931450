/**
 * Limits that are reached in the middle of requests: descriptors, address space, locked memory, signals.
 *
 * @module
 */

import { GuestMemoryManager, Mappable, MemoryRange } from "membacking";
import { littleAddressSpace, lockAtMost, noDescriptors, noQueuedSignals } from "../../vm/children/limits.ts";
import type { Family } from "../family.ts";
import { baseline, leakedAtLast } from "../resources.ts";
import { FaultyMachine } from "./faults.ts";

const PAGE = 0x1000;

const family: Family = {
  name: "limits",
  async attack(random, notes) {
    new FaultyMachine(random)[Symbol.dispose]();
    const before = await baseline();
    {
      using machine = new FaultyMachine(random);
      for (let i = 0; i < 30; i++) machine.request(random, notes);
      for (let round = 0; round < 20; round++) {
        const limit = random.of([
          () => littleAddressSpace(2 ** 23),
          noDescriptors,
          noQueuedSignals,
          () => lockAtMost(PAGE),
        ]);
        using _limited = limit();
        for (let i = 0; i < 5; i++) machine.request(random, notes);
        // What needs descriptors and addresses of its own fails whole.
        notes.try("memfd", () => Mappable.memfd("limited", 16 * PAGE)[Symbol.dispose]());
        notes.try("open", () => Mappable.open("/proc/self/maps")[Symbol.dispose]());
        notes.try("create", () => {
          const ram = [{ ranges: [MemoryRange.of(0, 16 * PAGE)] }];
          GuestMemoryManager.create({ maxAddress: 2 ** 24, ram, pin: random.oneIn(2) })[Symbol.dispose]();
        });
        notes.try("clone", () => random.of(machine.files).clone()[Symbol.dispose]());
      }
      for (let i = 0; i < 30; i++) machine.request(random, notes);
    }
    for (const left of await leakedAtLast(before)) notes.broken(left);
  },
};

export default family;
