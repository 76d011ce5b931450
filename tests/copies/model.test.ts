import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { GuestMemoryManager, MembackingError, type RamHandle, type Template } from "membacking";
import { PAGE, range } from "../support/units.ts";

const MIB = 2 ** 20;
/** Pages in several of the ranges that a chipset switches, and in RAM that comes and goes. */
const LOW = [0, 1, 0x9f, 0xa0, 0xbf, 0xc0, 0xc3, 0xc4, 0xf0, 0xff, 0x100, 0x1ff];
const HOT = [0x800, 0x801, 0x8ff];
const HOT_RANGE = range(0x800 * PAGE, 0x900 * PAGE);
const SWITCHED = [range(0xa0000, 0xc0000), range(0xc0000, 0xc4000), range(0xf0000, 0x100000)];

type Pages = Map<number, number>;

/** What memory has to be: one number a page. */
class Model {
  now: Pages = new Map(LOW.map((page) => [page, 0]));
  /** The pages of the moment to go back to. */
  base: Pages | null = null;
  /** Which freeze that was; templates and clones are of the freeze with their number. */
  moment = 0;
  readonly templates: { readonly template: Template; readonly pages: Pages; readonly of: number }[] = [];
  readonly clones: { readonly guest: GuestMemoryManager; readonly pages: Pages; readonly of: number }[] = [];
}

interface Real {
  readonly guest: GuestMemoryManager;
  hot: RamHandle | null;
}

function isShown(guest: GuestMemoryManager, page: number): boolean {
  return guest.memory.find(page * PAGE) !== null;
}

function check(guest: GuestMemoryManager, pages: Pages, what: string): void {
  for (const [page, value] of pages) {
    if (isShown(guest, page)) {
      assertEquals(guest.memory.readUint32(page * PAGE), value, `${what}, page 0x${page.toString(16)}`);
    }
  }
}

type Act = (model: Model, real: Real) => void;

const acts: fc.Arbitrary<[string, Act]> = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.tuple(
      fc.constantFrom(...LOW, ...HOT, 0xa0, 0xa0, 0xc0, 0xc0, 0xf0, 0xf0),
      fc.integer({ min: 1, max: 9 }),
    ).map((
      [page, value],
    ): [string, Act] => [
      `write ${page}`,
      (model, { guest }) => {
        if (!model.now.has(page) || !isShown(guest, page)) return;
        guest.memory.writeUint32(page * PAGE, value);
        model.now.set(page, value);
      },
    ]),
  },
  {
    weight: 3,
    arbitrary: fc.constant<[string, Act]>(["freeze", (model, { guest }) => {
      const template = guest.freeze();
      model.base = new Map(model.now);
      model.templates.push({ template, pages: new Map(model.now), of: ++model.moment });
    }]),
  },
  {
    weight: 3,
    arbitrary: fc.constant<[string, Act]>(["rollback", (model, { guest }) => {
      if (model.base === null) return void assertThrows(() => guest.rollback(), MembackingError);
      guest.rollback();
      // RAM that came since stays as it is; RAM that has gone stays away.
      for (const [page, value] of model.base) if (model.now.has(page)) model.now.set(page, value);
    }]),
  },
  {
    weight: 2,
    arbitrary: fc.constant<[string, Act]>(["thaw", (model, { guest }) => {
      const isNeeded = [...model.templates, ...model.clones].some(({ of }) => of === model.moment);
      if (model.base !== null && isNeeded) return void assertThrows(() => guest.thaw(), MembackingError);
      guest.thaw();
      model.base = null;
    }]),
  },
  {
    weight: 3,
    arbitrary: fc.nat(5).map((which): [string, Act] => [`clone ${which}`, (model) => {
      const from = model.templates[which % (model.templates.length || 1)];
      if (from === undefined || model.clones.length > 3) return;
      model.clones.push({ guest: from.template.clone(), pages: new Map(from.pages), of: from.of });
    }]),
  },
  {
    weight: 2,
    arbitrary: fc.tuple(fc.nat(5), fc.constantFrom(...LOW)).map((
      [which, page],
    ): [string, Act] => [`write in clone ${which}`, (model) => {
      const clone = model.clones[which % (model.clones.length || 1)];
      if (clone === undefined || !isShown(clone.guest, page)) return;
      clone.guest.memory.writeUint32(page * PAGE, 77);
      clone.pages.set(page, 77);
    }]),
  },
  {
    weight: 3,
    arbitrary: fc.tuple(fc.boolean(), fc.nat(5)).map((
      [isClone, which],
    ): [string, Act] => [`dispose ${which}`, (model) => {
      const list: { template?: Template; guest?: GuestMemoryManager }[] = isClone ? model.clones : model.templates;
      const [gone] = list.splice(which % (list.length || 1), 1);
      gone?.template?.[Symbol.dispose]();
      gone?.guest?.[Symbol.dispose]();
    }]),
  },
  {
    weight: 7,
    arbitrary: fc.tuple(fc.constantFrom(...SWITCHED), fc.constantFrom("unmapped" as const, "read-write" as const)).map((
      [where, to],
    ): [string, Act] => [`${to} ${where}`, (_model, { guest }) => {
      guest.setRamVisibility(where, to);
    }]),
  },
  {
    weight: 2,
    arbitrary: fc.tuple(fc.constantFrom(0, 0x9f, 0xc0, 0x100, 0x1f0), fc.constantFrom(1, 4, 16)).map((
      [page, count],
    ): [string, Act] => [`discard ${page}+${count}`, (model, { guest }) => {
      const span = range(page * PAGE, Math.min(page + count, 0x200) * PAGE);
      if (!guest.memory.isMapped(span.start, span.length, { write: true })) return;
      guest.discard(span);
      for (let at = page; at < page + count; at++) if (model.now.has(at)) model.now.set(at, 0);
    }]),
  },
  {
    weight: 2,
    arbitrary: fc.constant<[string, Act]>(["plug", (model, real) => {
      if (real.hot !== null) return;
      real.hot = real.guest.addRam({ name: "hot", ranges: [HOT_RANGE] });
      for (const page of HOT) model.now.set(page, 0);
    }]),
  },
  {
    weight: 1,
    arbitrary: fc.constant<[string, Act]>(["unplug", (model, real) => {
      real.hot?.[Symbol.dispose]();
      real.hot = null;
      for (const page of HOT) {
        model.now.delete(page);
        model.base?.delete(page);
      }
    }]),
  },
);

Deno.test("whatever is frozen, cloned, rolled back, thawed, discarded, switched and plugged, every page is what a naive model says", () => {
  const counts = new Map<string, number>();
  fc.assert(
    fc.property(fc.array(acts, { minLength: 5, maxLength: 40 }), (sequence) => {
      using guest = GuestMemoryManager.create({
        maxAddress: 16 * MIB,
        ram: [{ ranges: [range(0, 2 * MIB)] }],
        x86Legacy: true,
      });
      const model = new Model();
      const real: Real = { guest, hot: null };
      try {
        for (const [name, act] of sequence) {
          act(model, real);
          counts.set(name.split(" ")[0]!, (counts.get(name.split(" ")[0]!) ?? 0) + 1);
          check(guest, model.now, `after ${name}`);
          for (const [i, clone] of model.clones.entries()) check(clone.guest, clone.pages, `clone ${i} after ${name}`);
        }
        for (const where of SWITCHED) guest.setRamVisibility(where, "read-write");
        check(guest, model.now, "at the end, all of it switched on");
      } finally {
        for (const { guest } of model.clones) guest[Symbol.dispose]();
        for (const { template } of model.templates) template[Symbol.dispose]();
      }
    }),
    { numRuns: 250 },
  );
  for (const name of ["freeze", "rollback", "thaw", "clone", "discard", "unmapped", "plug"]) {
    if ((counts.get(name) ?? 0) < 20) throw new Error(`${name} was hardly exercised: ${counts.get(name) ?? 0}`);
  }
});
