import { assertEquals, assertGreater } from "@std/assert";
import fc from "fast-check";
import { type DirtyTracker, GuestMemoryManager, MembackingError, PageSet, type Snapshot } from "membacking";
import { PAGE, range } from "../support/units.ts";

const PAGES = 16;
const SIZE = PAGES * PAGE;

/** A snapshot, and what it has to be. */
interface Saved {
  readonly snapshot: Snapshot;
  readonly pages: readonly number[];
  /** What the guest of now has written since, where it is known. */
  since: PageSet | null;
}

/** A guest, what every page of it is full of, and all that has been saved. */
class World implements AsyncDisposable {
  readonly directory: string = Deno.makeTempDirSync();
  readonly saved: Saved[] = [];
  guest: GuestMemoryManager;
  pages: number[] = new Array(PAGES).fill(0);
  base: readonly number[] | null = null;
  #tracker: DirtyTracker;
  #count = 0;

  constructor(backing: "private" | "memfd") {
    const ram = [{ ranges: [range(0, SIZE)], ...(backing === "private" && { backing }) }];
    this.guest = GuestMemoryManager.create({ maxAddress: SIZE, ram });
    this.#tracker = this.guest.trackDirty();
  }

  async save(on: number, tracked: boolean, live: boolean): Promise<void> {
    const written = this.#tracker.take();
    for (const saved of this.saved) saved.since &&= saved.since.union(written);
    const base = on === 0 ? undefined : this.saved[on % this.saved.length];
    const pages = tracked ? base?.since : null;
    const snapshot = await this.guest.save(`${this.directory}/${this.#count++}`, {
      live,
      ...(base && { base: base.snapshot, ...(pages && { pages }) }),
    }).catch((error) => {
      // Private memory cannot be frozen.
      if (!live || !(error instanceof MembackingError)) throw error;
      return null;
    });
    if (snapshot !== null) this.saved.push({ snapshot, pages: [...this.pages], since: PageSet.EMPTY });
  }

  restore({ snapshot, pages }: Saved, copyOnWrite: boolean): void {
    this.#tracker[Symbol.dispose]();
    this.guest[Symbol.dispose]();
    this.guest = GuestMemoryManager.restore(snapshot, { copyOnWrite });
    this.#tracker = this.guest.trackDirty();
    this.pages = [...pages];
    this.base = copyOnWrite ? pages : null;
    for (const saved of this.saved) saved.since = saved.snapshot === snapshot ? PageSet.EMPTY : null;
  }

  async flatten(saved: Saved): Promise<void> {
    const snapshot = await saved.snapshot.flatten(`${this.directory}/${this.#count++}`);
    this.saved.push({ ...saved, snapshot });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#tracker[Symbol.dispose]();
    this.guest[Symbol.dispose]();
    for (const { snapshot } of this.saved) snapshot[Symbol.dispose]();
    await Deno.remove(this.directory, { recursive: true });
  }
}

function contents(guest: GuestMemoryManager): number[] {
  return Array.from({ length: PAGES }, (_, page) => {
    const [first = 0, last] = [0, PAGE - 1].map((at) => guest.memory.readUint8(page * PAGE + at));
    return first === last ? first : NaN;
  });
}

type Act = (world: World) => void | Promise<void>;

const span = fc.tuple(fc.nat(PAGES - 1), fc.integer({ min: 1, max: 6 }));
const which = fc.nat(20);
const act = (name: string, arbitrary: fc.Arbitrary<Act>, weight: number) => ({
  weight,
  arbitrary: arbitrary.map((run): [string, Act] => [name, run]),
});

const acts: fc.Arbitrary<[string, Act]> = fc.oneof(
  act(
    "write",
    fc.tuple(span, fc.nat(3)).map(([[page, count], value]): Act => ({ guest, pages }) => {
      const end = Math.min(page + count, PAGES);
      guest.memory.fill(page * PAGE, (end - page) * PAGE, value);
      pages.fill(value, page, end);
    }),
    8,
  ),
  act(
    "discard",
    span.map(([page, count]): Act => ({ guest, pages }) => {
      const end = Math.min(page + count, PAGES);
      guest.discard(range(page * PAGE, end * PAGE));
      pages.fill(0, page, end);
    }),
    3,
  ),
  act(
    "save",
    fc.tuple(which, fc.boolean(), fc.nat(3)).map(([on, tracked, live]): Act => async (world) => {
      await world.save(world.saved.length === 0 ? 0 : on, tracked, live === 0);
    }),
    6,
  ),
  act(
    "restore",
    fc.tuple(which, fc.boolean()).map(([of, copyOnWrite]): Act => (world) => {
      const saved = world.saved[of % (world.saved.length || 1)];
      if (saved !== undefined) world.restore(saved, copyOnWrite);
    }),
    3,
  ),
  act(
    "flatten",
    which.map((of): Act => async (world) => {
      const saved = world.saved[of % (world.saved.length || 1)];
      if (saved !== undefined) await world.flatten(saved);
    }),
    1,
  ),
  act(
    "freeze",
    fc.constant<Act>((world) => {
      try {
        using _template = world.guest.freeze();
        world.base = [...world.pages];
      } catch (error) {
        if (!(error instanceof MembackingError)) throw error;
      }
    }),
    1,
  ),
  act(
    "rollback",
    fc.constant<Act>((world) => {
      if (world.base === null) return;
      world.guest.rollback();
      world.pages = [...world.base];
    }),
    2,
  ),
);

Deno.test("a guest saved as the difference to any snapshot, of whatever past, is restored as it was", async () => {
  const counts: Record<string, number> = {};
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom("private", "memfd"),
      fc.array(acts, { minLength: 5, maxLength: 30, size: "max" }),
      async (backing, sequence) => {
        await using world = new World(backing);
        for (const [name, run] of sequence) {
          await run(world);
          counts[name] = (counts[name] ?? 0) + 1;
          assertEquals(contents(world.guest), world.pages, `after ${name}`);
        }
        for (const { snapshot, pages } of world.saved) {
          for (const copyOnWrite of [true, false]) {
            using restored = GuestMemoryManager.restore(snapshot, { copyOnWrite });
            assertEquals(contents(restored), pages);
          }
        }
      },
    ),
    { numRuns: 60 },
  );
  for (const name of ["save", "restore", "flatten", "freeze", "rollback", "discard"]) {
    assertGreater(counts[name] ?? 0, 20, `${name} was hardly exercised`);
  }
});
