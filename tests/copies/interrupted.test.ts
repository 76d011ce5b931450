// Freeze, thaw and rollback, interrupted by the end of the stack at every depth.

import { assert, assertEquals, assertGreater } from "@std/assert";
import { GuestMemoryManager } from "membacking";
import { RecordingDmaTarget } from "membacking/testing";
import { openFds } from "../support/proc.ts";
import { near, stackLimit } from "../support/stack.ts";
import { range } from "../support/units.ts";

const MIB = 2 ** 20;
const AT = [0, MIB, 3 * MIB];

function newGuest(): GuestMemoryManager {
  const guest = GuestMemoryManager.create({
    maxAddress: 8 * MIB,
    ram: [{ ranges: [range(0, 2 * MIB)] }, { ranges: [range(2 * MIB, 4 * MIB)] }],
  });
  guest.regions.addDmaTarget(new RecordingDmaTarget());
  return guest;
}

const words = (guest: GuestMemoryManager) => AT.map((gpa) => guest.memory.readUint32(gpa));
const write = (guest: GuestMemoryManager, value: number) => AT.forEach((gpa) => guest.memory.writeUint32(gpa, value));

const CASES: readonly { name: string; act: (guest: GuestMemoryManager) => void; isBack: boolean }[] = [
  { name: "freeze", act: (guest) => guest.freeze()[Symbol.dispose](), isBack: false },
  { name: "thaw", act: (guest) => guest.thaw(), isBack: false },
  { name: "rollback", act: (guest) => void guest.rollback(), isBack: true },
];

for (const { name, act, isBack } of CASES) {
  Deno.test(`a ${name} that the stack ends in, wherever, loses no memory, and can be made again`, () => {
    const fds = openFds();
    let interrupted = 0;
    let leaks = 0;
    for (const isFrozen of name === "freeze" ? [false, true] : [true]) {
      for (let depth = 0; depth < 400; depth += 3) {
        const guest = newGuest();
        write(guest, 1);
        if (isFrozen) guest.freeze()[Symbol.dispose]();
        write(guest, 2);
        let thrown: unknown;
        try {
          near(stackLimit(), depth, () => act(guest));
        } catch (error) {
          thrown = error;
          interrupted++;
        }
        const now = words(guest);
        if (!isBack) assertEquals(now, [2, 2, 2], `${thrown}`);
        assert(now.every((word) => word === 1 || word === 2), `${now}`);
        let again: unknown;
        try {
          act(guest);
        } catch (error) {
          again = error;
        }
        assertEquals(again, undefined, `${depth}: ${again}, after ${thrown}`);
        assertEquals(words(guest), isBack ? [1, 1, 1] : [2, 2, 2]);
        guest[Symbol.dispose]();
        leaks = openFds() - fds;
      }
    }
    assertGreater(interrupted, 10);
    assertEquals(leaks, 0);
  });
}
