/**
 * Requests that run out of stack at any depth: what was under way is undone, or put right by the next, and memory is never
 * lost. (A file that was cloned just then may stay open.)
 *
 * @module
 */

import type { Family } from "../family.ts";
import { anyRequest, FaultyMachine } from "./faults.ts";

function at(depth: number, call: () => unknown): unknown {
  return depth === 0 ? call() : at(depth - 1, call);
}

/** How deep `at` can go from here, and still make a call. */
function deepest(): number {
  let [fits, not] = [0, 1_000_000];
  while (not - fits > 1) {
    const depth = (fits + not) >> 1;
    try {
      at(depth, () => {});
      fits = depth;
    } catch {
      not = depth;
    }
  }
  return fits;
}

const family: Family = {
  name: "stack",
  attack(random, notes) {
    const machine = new FaultyMachine(random);
    const { manager, regions, files } = machine;
    for (let i = 0; i < 40; i++) machine.request(random, notes);
    const depth = deepest();
    for (let i = 0; i < 400; i++) {
      const request = anyRequest(random, manager, regions, files);
      const less = random.below(80);
      try {
        at(depth - less, request);
      } catch {
        // Whatever it is: the claim is what follows.
      }
      for (const region of [...regions]) {
        try {
          void region.visible;
        } catch {
          regions.splice(regions.indexOf(region), 1);
        }
      }
      // Where a mapping is gone that should be there, this is SIGSEGV.
      for (const { range } of [...manager.memory.pieces()]) {
        notes.try("read", () => manager.memory.readUint8(range.start));
      }
    }
    // With room again, requests work; the targets are JavaScript too, and may be in pieces.
    for (let i = 0; i < 40; i++) notes.try("a request", anyRequest(random, manager, regions, files));
    machine.isCalm = true;
    notes.try("dispose", () => machine[Symbol.dispose]());
  },
};

export default family;
