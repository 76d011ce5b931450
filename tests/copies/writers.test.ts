/**
 * Others go on writing while memory is saved, frozen and rolled back: clients, which no quiesce hook holds, and those who hold
 * locks.
 */

import { assert, assertEquals, assertRejects, assertStrictEquals, assertThrows } from "@std/assert";
import { GuestMemoryManager, MembackingError, MemoryLockedError } from "membacking";
import { Remote } from "../clients/remote.ts";
import { PAGE, range } from "../support/units.ts";

const MIB = 2 ** 20;
const PAGES = 512;

function folder() {
  const path = Deno.makeTempDirSync();
  return { path, [Symbol.dispose]: () => Deno.removeSync(path, { recursive: true }) };
}

function newGuest(backing: { backing?: "private" } = {}): GuestMemoryManager {
  const maxAddress = PAGES * PAGE;
  return GuestMemoryManager.create({ maxAddress, ram: [{ ranges: [range(0, maxAddress)], ...backing }] });
}

/** Writes 1, 2, 3 and so on, each to the next page, until it is told to stop. */
const COUNT_UP = `
  for (let n = 1; Atomics.load(stop, 0) === 0; n++) client.memory.writeUint32(n % ${PAGES} * ${PAGE}, n);
`;

/** Throws unless every page has what it had at one moment of counting up. */
function assertIsOneMoment(guest: GuestMemoryManager, what: string): void {
  const numbers = Array.from({ length: PAGES }, (_, page) => guest.memory.readUint32(page * PAGE));
  const last = Math.max(...numbers);
  const expected = numbers.map((_, page) => Math.max(0, last - (last - page + PAGES) % PAGES));
  assertEquals(numbers, expected, what);
}

const KINDS = {
  "shared": { make: () => newGuest(), lives: [false, true], prepare: () => null },
  "frozen": { make: () => newGuest(), lives: [false, true], prepare: (guest: GuestMemoryManager) => guest.freeze() },
  "private": { make: () => newGuest({ backing: "private" }), lives: [false], prepare: () => null },
} as const;

for (const [kind, { make, lives, prepare }] of Object.entries(KINDS)) {
  Deno.test(`a snapshot of ${kind} memory that a client writes is of one moment, and whole`, async () => {
    using disk = folder();
    using guest = make();
    using _template = prepare(guest);
    await using remote = await Remote.start(guest.regions);
    const stop = new Int32Array(new SharedArrayBuffer(4));
    const done = remote.run(COUNT_UP, { stop });
    try {
      for (let i = 0; i < 30; i++) {
        await new Promise((resolve) => setTimeout(resolve, 2));
        const live = lives[i % lives.length] ?? false;
        using snapshot = await guest.save(`${disk.path}/${i}`, { live });
        await snapshot.verify();
        using restored = GuestMemoryManager.restore(snapshot);
        assertIsOneMoment(restored, `save ${i}, live: ${live}`);
      }
    } finally {
      Atomics.store(stop, 0, 1);
      await done;
    }
    assertIsOneMoment(guest, "at the end");
  });
}

Deno.test("memory cannot be frozen under a lock that shows a part of it by a mapping of its own", async () => {
  using disk = folder();
  using guest = GuestMemoryManager.create({
    maxAddress: MIB,
    ram: [{ ranges: [range(0, 8 * PAGE), range(8 * PAGE, 16 * PAGE)] }],
  });
  guest.setRamVisibility(range(8 * PAGE, 16 * PAGE), "read-only");
  const whole = range(0, 16 * PAGE);
  {
    using lock = guest.memory.lock(whole);
    assertThrows(() => guest.freeze(), MemoryLockedError);
    await assertRejects(() => guest.save(`${disk.path}/a`, { live: true }), MemoryLockedError);
    lock.bytes[0] = 77;
    assertStrictEquals(guest.memory.readUint8(0), 77);
  }
  await using remote = await Remote.start(guest.regions);
  await remote.run(`kept.lock = client.memory.lock(new MemoryRange(0, ${whole.end}));`);
  assertThrows(() => guest.freeze(), MemoryLockedError);
  await remote.run("kept.lock[Symbol.dispose]();");
  using _apart = guest.memory.lock(range(0, 8 * PAGE));
  using _readOnly = guest.memory.lock(range(8 * PAGE, 16 * PAGE));
  using template = guest.freeze();
  using clone = template.clone();
  assertStrictEquals(clone.memory.readUint8(0), 77);
});

Deno.test("hidden memory that is rolled back counts as written", async () => {
  using disk = folder();
  const ram = range(0, 4 * PAGE);
  using guest = GuestMemoryManager.create({ maxAddress: MIB, ram: [{ ranges: [ram] }] });
  using tracker = guest.trackDirty();
  using _template = guest.freeze();
  guest.memory.writeUint8(PAGE, 1);
  guest.setRamVisibility(ram, "unmapped");
  tracker.take();
  using before = await guest.save(`${disk.path}/before`);
  assertEquals([...guest.rollback()].map(String), [`${range(PAGE, 2 * PAGE)}`]);
  using after = await guest.save(`${disk.path}/after`, { base: before, pages: tracker.take() });
  using restored = GuestMemoryManager.restore(after);
  restored.setRamVisibility(ram, "read-write");
  assertStrictEquals(restored.memory.readUint8(PAGE), 0);
});

Deno.test("a client never sees a rollback half done, however many runs the snapshot had", async () => {
  using disk = folder();
  const pages = 8192;
  using saved = GuestMemoryManager.create({ maxAddress: pages * PAGE, ram: [{ ranges: [range(0, pages * PAGE)] }] });
  const fill = (value: number, step: number) => {
    for (let page = 0; page < pages; page += step) saved.memory.writeUint8(page * PAGE, value);
  };
  fill(1, 1);
  using base = await saved.save(`${disk.path}/base`);
  fill(2, 2);
  using difference = await saved.save(`${disk.path}/difference`, { base });
  using guest = GuestMemoryManager.restore(difference);
  await using remote = await Remote.start(guest.regions);
  const stop = new Int32Array(new SharedArrayBuffer(4));
  const gpa = (pages - 2) * PAGE;
  const seen = remote.run<number[]>(
    `const seen = new Set(); while (Atomics.load(stop, 0) === 0) seen.add(client.memory.readUint8(gpa)); return [...seen];`,
    { stop, gpa },
  );
  for (let i = 0; i < 3; i++) {
    guest.memory.writeUint8(gpa, 9);
    guest.rollback();
  }
  Atomics.store(stop, 0, 1);
  for (const value of await seen) assert(value === 2 || value === 9, `${value} was never there`);
});

Deno.test("RAM that comes while vCPUs are being held for a save is a typed error, and nothing is left", async () => {
  using disk = folder();
  let hold: () => void = () => {};
  using guest = GuestMemoryManager.create({
    maxAddress: MIB,
    ram: [{ ranges: [range(0, 4 * PAGE)] }],
    quiesce: () => {
      hold();
      return { [Symbol.dispose]() {} };
    },
  });
  hold = () => {
    hold = () => {};
    guest.addRam({ name: "late", ranges: [range(8 * PAGE, 9 * PAGE)] });
  };
  await assertRejects(() => guest.save(`${disk.path}/a`), MembackingError, "come or gone");
  assertEquals([...Deno.readDirSync(disk.path)].length, 0);
  (await guest.save(`${disk.path}/a`))[Symbol.dispose]();
});
