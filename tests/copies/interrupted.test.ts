// Freeze, thaw and rollback, interrupted by the end of the stack at every depth.

import { assert, assertEquals, assertGreater } from "@std/assert";
import { GuestMemoryManager, type Snapshot } from "membacking";
import { RecordingDmaTarget } from "membacking/testing";
import { openFds, openFiles } from "../support/proc.ts";
import { FRAME, near } from "../support/stack.ts";
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
          near(FRAME * depth, () => act(guest));
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

Deno.test("a restore or a save that the stack ends in, wherever, leaves no file open and nothing behind", async () => {
  const folder = Deno.makeTempDirSync();
  try {
    using guest = newGuest();
    write(guest, 7);
    using snapshot = await guest.save(`${folder}/whole`);
    GuestMemoryManager.restore(snapshot)[Symbol.dispose]();
    const before = openFiles();
    const outcomes: Record<string, number> = {};
    for (let depth = 0; depth < 700; depth += 3) {
      let saving: Promise<Snapshot> | undefined;
      const acts: [name: string, act: () => void][] = [
        ["restored", () => GuestMemoryManager.restore(snapshot)[Symbol.dispose]()],
        ["saved", () => void (saving = guest.save(`${folder}/${depth}`))],
      ];
      for (const [name, act] of acts) {
        let outcome = name;
        try {
          near(FRAME * depth, act);
          if (saving !== undefined) (await saving)[Symbol.dispose]();
        } catch (error) {
          assert(error instanceof RangeError, `${error}`);
          outcome = `not ${name}`;
        }
        outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
        assertEquals(openFiles(), before, `${outcome}, ${depth} frames from the end`);
      }
      assertEquals(words(guest), [7, 7, 7]);
    }
    for (const outcome of ["restored", "not restored", "saved", "not saved"]) assertGreater(outcomes[outcome] ?? 0, 10);
    const left = [...Deno.readDirSync(folder)].filter(({ name }) => name.endsWith(".partial"));
    assertEquals(left, []);
    using again = GuestMemoryManager.restore(snapshot);
    assertEquals(words(again), [7, 7, 7]);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});
