import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import fc from "fast-check";
import { GuestMemoryManager, MappingError, PageSet, Snapshot, SnapshotError } from "membacking";
import { mappings, openFds } from "../support/proc.ts";
import { PAGE, range } from "../support/units.ts";

const MIB = 2 ** 20;

/** A temporary directory, until disposed. */
function folder() {
  const path = Deno.makeTempDirSync();
  return { path, [Symbol.dispose]: () => Deno.removeSync(path, { recursive: true }) };
}

function newGuest(options: { x86Legacy?: boolean; quiesce?: () => Disposable } = {}): GuestMemoryManager {
  return GuestMemoryManager.create({
    maxAddress: 64 * MIB,
    ram: [{ name: "low", ranges: [range(0, 4 * MIB)] }, {
      name: "high",
      ranges: [range(32 * MIB, 34 * MIB), range(40 * MIB, 41 * MIB)],
    }],
    ...options,
  });
}

/** The first word of every page of RAM that is not zero, by GPA. */
function contents(guest: GuestMemoryManager): Record<string, number> {
  const found: Record<string, number> = {};
  for (const { start, end } of guest.ramRanges) {
    for (let gpa = start; gpa < end; gpa += PAGE) {
      if (guest.memory.find(gpa) === null) continue;
      const word = guest.memory.readUint32(gpa);
      if (word !== 0) found[gpa] = word;
    }
  }
  return found;
}

Deno.test("a snapshot appears where its name meant when it was asked for, wherever the process goes meanwhile", async () => {
  using there = folder();
  using elsewhere = folder();
  using guest = newGuest();
  guest.memory.fill(0, 4 * MIB, 7);
  const before = Deno.cwd();
  try {
    Deno.chdir(there.path);
    const saving = guest.save("saved");
    Deno.chdir(elsewhere.path);
    using saved = await saving;
    Deno.chdir(there.path);
    const flattening = saved.flatten("flat");
    Deno.chdir(elsewhere.path);
    using flat = await flattening;
    assertEquals(flat.storedBytes, saved.storedBytes);
  } finally {
    Deno.chdir(before);
  }
  const names = (path: string) => [...Deno.readDirSync(path)].map(({ name }) => name).sort();
  assertEquals([names(there.path), names(elsewhere.path)], [["flat", "saved"], []]);
});

for (const copyOnWrite of [true, false]) {
  Deno.test(`a restored guest has the RAM, the visibility and the state that were saved (copyOnWrite: ${copyOnWrite})`, async () => {
    using dir = folder();
    const before = { fds: openFds(), maps: mappings().length };
    {
      using guest = newGuest({ x86Legacy: true });
      for (const gpa of [0, 0xa0000, 0xf0000, 4 * MIB - PAGE, 32 * MIB, 41 * MIB - PAGE]) {
        guest.memory.writeUint32(gpa, gpa + 1);
      }
      const expected = contents(guest);
      guest.setRamVisibility(range(0xa0000, 0xc0000), "unmapped");
      guest.setRamVisibility(range(0xf0000, 0x10_0000), "read-only");
      const state = { vcpu0: Uint8Array.of(1, 2, 3), uart: new Uint8Array(0) };
      using snapshot = await guest.save(`${dir.path}/full`, { state });
      assertEquals(snapshot.storedBytes, 6 * PAGE);
      assertEquals(guest.memory.find(0)?.kind, "shared");

      using restored = GuestMemoryManager.restore(snapshot, { copyOnWrite });
      snapshot[Symbol.dispose]();
      assertEquals(restored.memory.find(0xa0000), null);
      assert(!restored.memory.isMapped(0xf0000, 4, { write: true }));
      assertEquals(restored.shareableRegions().length > 0, !copyOnWrite);
      restored.setRamVisibility(range(0xa0000, 0xc0000), "read-write");
      assertEquals(contents(restored), expected);
      restored.memory.writeUint32(0x1000, 7);
      using again = await Snapshot.open(`${dir.path}/full`, { verify: true });
      assertEquals([...again.state], Object.entries(state));
    }
    assertEquals(openFds(), before.fds);
  });
}

Deno.test("differences by a tracker's pages, by comparing, and restored over each other are the guest at each moment", async () => {
  using dir = folder();
  let made = 0;
  const change = fc.array(fc.tuple(fc.nat(7 * 256 - 1), fc.nat(3)), { minLength: 1, maxLength: 12 });
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(change, fc.boolean(), fc.boolean()), { minLength: 2, maxLength: 4 }),
      async (changes) => {
        using guest = newGuest();
        using tracker = guest.trackDirty();
        const pages = guest.ramRanges.flatMap(({ start, end }) =>
          Array.from({ length: (end - start) / PAGE }, (_, i) => start + i * PAGE)
        );
        const parents: string[] = [];
        using stack = new DisposableStack();
        let base: Snapshot | undefined;
        for (const [writes, isTracked, live] of changes) {
          for (const [page, value] of writes) guest.memory.writeUint32(pages[page]!, value);
          const written = tracker.take();
          const path = `${dir.path}/${made++}`;
          const from: Snapshot | undefined = base;
          const snapshot: Snapshot = stack.use(
            await guest.save(path, {
              live,
              ...(from !== undefined && { base: from, ...(isTracked && { pages: written }) }),
            }),
          );
          if (from !== undefined) assert(snapshot.storedBytes <= writes.length * PAGE);
          base = snapshot;
          const expected = contents(guest);
          {
            using opened = await Snapshot.open(path, { parents: parents.toReversed(), verify: true });
            using restored = GuestMemoryManager.restore(opened);
            assertEquals(contents(restored), expected);
            restored.memory.fill(0, 64 * PAGE, 9);
            restored.memory.fill(32 * MIB, 64 * PAGE, 9);
            restored.rollback();
            assertEquals(contents(restored), expected);
            using shared = GuestMemoryManager.restore(opened, { copyOnWrite: false });
            assertEquals(contents(shared), expected);
          }
          parents.push(path);
        }
        using flat = await base!.flatten(`${dir.path}/flat-${made}`);
        using restored = GuestMemoryManager.restore(flat);
        assertEquals(contents(restored), contents(guest));
      },
    ),
    { numRuns: 12 },
  );
});

Deno.test("what is written while memory is saved is not in the snapshot", async () => {
  using dir = folder();
  using guest = newGuest();
  guest.memory.fill(0, 4 * MIB, 1);
  const before = contents(guest);
  let writes = 0;
  using snapshot = await guest.save(`${dir.path}/live`, {
    live: true,
    onProgress: () => guest.memory.fill(writes++ % 512 * PAGE, 4 * MIB - 512 * PAGE, 2),
  });
  assert(writes > 0);
  using restored = GuestMemoryManager.restore(snapshot);
  assertEquals(contents(restored), before);
  assertEquals(guest.memory.readUint8(4 * MIB - 513 * PAGE), 2);
  assertEquals(guest.memory.find(0)?.kind, "shared");
});

Deno.test("a guest that is frozen is saved as it is now, and stays frozen over the same moment", async () => {
  using dir = folder();
  using guest = newGuest();
  guest.memory.writeUint32(0, 1);
  using template = guest.freeze();
  guest.memory.writeUint32(0, 2);
  guest.memory.writeUint32(PAGE, 3);
  using snapshot = await guest.save(`${dir.path}/frozen`, { live: true });
  using restored = GuestMemoryManager.restore(snapshot);
  assertEquals(contents(restored), { "0": 2, "4096": 3 });
  guest.rollback();
  assertEquals(contents(guest), { "0": 1 });
  using clone = template.clone();
  assertEquals(contents(clone), { "0": 1 });
});

Deno.test("memory that cannot be frozen is saved in one go, and live is refused", async () => {
  using dir = folder();
  using guest = newGuest();
  guest.memory.writeUint32(32 * MIB, 5);
  assert((guest.shareableRegions()[0]?.fd ?? -1) >= 0);
  await assertRejects(() => guest.save(`${dir.path}/live`, { live: true }), MappingError, "descriptor");
  using snapshot = await guest.save(`${dir.path}/held`);
  using restored = GuestMemoryManager.restore(snapshot);
  assertEquals(contents(restored), { [32 * MIB]: 5 });
  assertEquals([...Deno.readDirSync(dir.path)].map(({ name }) => name), ["held"]);
});

Deno.test("vCPUs are held until memory is frozen, or without live until it is written, and always let go", async () => {
  using dir = folder();
  let held = 0;
  const quiesce = () => {
    held++;
    return { [Symbol.dispose]: () => void held-- };
  };
  using guest = newGuest({ quiesce });
  guest.memory.fill(0, 4 * MIB, 1);
  const seen: Record<string, number[]> = {};
  for (const live of [true, false]) {
    seen[`${live}`] = [];
    using _snapshot = await guest.save(`${dir.path}/${live}`, {
      live,
      onProgress: () => void seen[`${live}`]!.push(held),
    });
    assertEquals(held, 0);
  }
  assertEquals([...new Set(seen["true"])], [0]);
  assertEquals([...new Set(seen["false"])], [1]);
  await assertRejects(() => guest.save(`${dir.path}/true`), SnapshotError, "exists");
  assertEquals(held, 0);
  const controller = new AbortController();
  const aborted = guest.save(`${dir.path}/aborted`, {
    signal: controller.signal,
    onProgress: () => controller.abort(),
  });
  await assertRejects(() => aborted, DOMException);
  assertEquals([held, guest.memory.find(0)?.kind], [0, "shared"]);
  assertEquals([...Deno.readDirSync(dir.path)].map(({ name }) => name).sort(), ["false", "true"]);
});

Deno.test("a base of another layout, and what is no base, are typed errors and nothing is written", async () => {
  using dir = folder();
  using guest = newGuest();
  using other = GuestMemoryManager.create({ maxAddress: 64 * MIB, ram: [{ ranges: [range(0, 4 * MIB)] }] });
  using base = await other.save(`${dir.path}/other`);
  const error = await assertRejects(() => guest.save(`${dir.path}/difference`, { base }), SnapshotError);
  assertEquals(error.kind, "layout");
  await assertRejects(() => guest.save(`${dir.path}/missing/below`), Error, "ENOENT");
  base[Symbol.dispose]();
  assertThrows(() => GuestMemoryManager.restore(base), Error, "disposed");
  await assertRejects(() => guest.save(`${dir.path}/pages`, { base, pages: PageSet.EMPTY }), Error, "disposed");
  assertEquals([...Deno.readDirSync(dir.path)].map(({ name }) => name), ["other"]);
});

Deno.test("forty thousand scattered pages are restored within the budget of mappings", async () => {
  using dir = folder();
  const pages = 90_000;
  using guest = GuestMemoryManager.create({ maxAddress: 512 * MIB, ram: [{ ranges: [range(0, 512 * MIB)] }] });
  using base = await guest.save(`${dir.path}/base`);
  for (let page = 0; page < pages; page += 2) guest.memory.writeUint32(page * PAGE, page + 1);
  using difference = await guest.save(`${dir.path}/difference`, { base });
  assertEquals(difference.storedBytes, pages / 2 * PAGE);
  const before = mappings().length;
  using restored = GuestMemoryManager.restore(difference);
  assert(mappings().length - before < 10_000);
  for (let page = 0; page < pages; page += 997) {
    assertEquals(restored.memory.readUint32(page * PAGE), page % 2 === 0 ? page + 1 : 0);
  }
});
