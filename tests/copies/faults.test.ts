import { assert, assertEquals, assertThrows } from "@std/assert";
import { GuestMemoryManager, MappingError, PageSet } from "membacking";
import { FAILURE_MODES, Faults, RecordingDmaTarget, RecordingPartition } from "membacking/testing";
import { mappings, openFds } from "../support/proc.ts";
import { PAGE, range } from "../support/units.ts";

const MIB = 2 ** 20;
const AT = [0, 0xa0000, MIB, 2 * MIB, 4 * MIB - PAGE];

interface Rig {
  readonly guest: GuestMemoryManager;
  readonly faults: Faults;
  /** What the targets have been told, to be compared with what they would be told anew. */
  told(): unknown;
}

function rig(stack: DisposableStack): Rig {
  const faults = new Faults();
  const guest = stack.use(GuestMemoryManager.create({
    maxAddress: 8 * MIB,
    x86Legacy: true,
    ram: [{ ranges: [range(0, 2 * MIB)] }, { ranges: [range(2 * MIB, 4 * MIB)] }],
  }));
  const partition = new RecordingPartition({ faults });
  const dma = new RecordingDmaTarget({ faults });
  stack.use(guest.attachPartition(partition));
  stack.use(guest.regions.addDmaTarget(dma));
  return { guest, faults, told: () => [partition.ranges, dma.mappings].map((all) => Deno.inspect(all, { depth: 3 })) };
}

const bytes = (guest: GuestMemoryManager) => AT.map((gpa) => guest.memory.readUint8(gpa));
const write = (guest: GuestMemoryManager, value: number) => AT.forEach((gpa) => guest.memory.fill(gpa, PAGE, value));

/** What a rig is brought to, what is tried then, and what memory has afterwards. */
const CASES: readonly {
  readonly name: string;
  readonly before: (guest: GuestMemoryManager) => void;
  readonly act: (guest: GuestMemoryManager) => void;
  readonly after: number;
}[] = [
  { name: "freeze", before() {}, act: (guest) => guest.freeze()[Symbol.dispose](), after: 2 },
  {
    name: "freeze again",
    before: (guest) => guest.freeze()[Symbol.dispose](),
    act: (guest) => guest.freeze()[Symbol.dispose](),
    after: 2,
  },
  { name: "thaw", before: (guest) => guest.freeze()[Symbol.dispose](), act: (guest) => guest.thaw(), after: 2 },
  {
    name: "rollback of what was discarded",
    before: (guest) => guest.freeze()[Symbol.dispose](),
    act: (guest) => void guest.rollback(),
    after: 1,
  },
];

for (const { name, before, act, after } of CASES) {
  Deno.test(`whichever call of a target fails in a ${name}, memory, targets and trackers agree, and the next one works`, () => {
    const fds = openFds();
    const maps = () => mappings().filter(({ file }) => file.includes("memfd:ram")).length;
    const mapped = maps();
    let failures = 0;
    for (const mode of FAILURE_MODES) {
      for (let calls = 0, done = false; !done; calls++) {
        using stack = new DisposableStack();
        const { guest, faults, told } = rig(stack);
        write(guest, 1);
        before(guest);
        write(guest, 2);
        // Pages that are in no file and no mapping of one any more.
        if (name.startsWith("rollback")) {
          guest.discard(range(2 * MIB, 4 * MIB));
          for (const gpa of AT.slice(3)) guest.memory.fill(gpa, PAGE, 2);
        }
        using tracker = guest.trackDirty();
        const [was, toldBefore] = [bytes(guest), told()];
        faults.failAfter(calls, { mode });
        let error: unknown;
        try {
          act(guest);
        } catch (thrown) {
          error = thrown;
        }
        faults.reset();
        done = error === undefined;
        const now = bytes(guest);
        if (error !== undefined) {
          failures++;
          assert(error instanceof MappingError, `${error}`);
          const changed = PageSet.of(AT.filter((_, i) => now[i] !== was[i]).map((gpa) => range(gpa, gpa + PAGE)));
          assertEquals(changed.difference(tracker.take()).count, 0);
          if (!name.startsWith("rollback")) assertEquals(now, was);
          if (error.outOfStep.length === 0) assertEquals(told(), toldBefore);
          act(guest);
        }
        assertEquals(bytes(guest), AT.map(() => after));
        // Whoever comes now is told what the others have been told.
        const late = new RecordingDmaTarget();
        using _late = guest.regions.addDmaTarget(late);
        assertEquals(late.mappings.length > 0, true);
        if (name.startsWith("freeze")) {
          write(guest, 9);
          guest.rollback();
          assertEquals(bytes(guest), AT.map(() => 2));
        }
      }
    }
    assert(failures >= 2 * FAILURE_MODES.length, `only ${failures} calls could fail`);
    assertEquals([openFds(), maps()], [fds, mapped]);
  });
}

Deno.test("a rollback that fails half-way leaves guests to be rolled back again", () => {
  using stack = new DisposableStack();
  const { guest, faults } = rig(stack);
  write(guest, 1);
  guest.freeze()[Symbol.dispose]();
  write(guest, 2);
  guest.discard(range(2 * MIB, 4 * MIB));
  faults.failAfter(0, { times: Infinity });
  assertThrows(() => guest.rollback(), MappingError);
  faults.reset();
  guest.rollback();
  assertEquals(bytes(guest), AT.map(() => 1));
});
