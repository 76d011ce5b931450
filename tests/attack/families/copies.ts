/**
 * Frozen, cloned, rolled back and thawed memory, in any order and under limits: each copy has its own contents, whatever
 * fails.
 *
 * @module
 */

import { GuestMemoryManager, MemoryRange, type Template } from "membacking";
import { littleAddressSpace, noDescriptors } from "../../vm/children/limits.ts";
import type { Family, Notes } from "../family.ts";
import type { Random } from "../random.ts";
import { baseline, leakedAtLast } from "../resources.ts";

const PAGE = 0x1000;
const PAGES = 32;

/** A guest, and what each of its pages holds. */
interface Copy {
  readonly guest: GuestMemoryManager;
  pages: number[];
  /** The contents at the latest freeze, clone or restore. */
  base: number[] | null;
}

function check({ guest, pages }: Copy, notes: Notes): void {
  const wrong = pages.findIndex((value, page) => guest.memory.readUint8(page * PAGE + 7) !== value);
  notes.claim(wrong === -1, `page ${wrong} of a copy has other contents than were put there`);
}

/** One thing that can be done with a copy; what comes of it is in the model where it did not fail. */
function act(
  random: Random,
  notes: Notes,
  copies: Copy[],
  templates: Template[],
  pagesOf: Map<Template, number[]>,
): void {
  const copy = random.of(copies);
  const { guest } = copy;
  const done = (what: string, attempt: () => unknown, then: () => void) => {
    let failed = true;
    notes.try(what, () => {
      attempt();
      failed = false;
    });
    if (!failed) then();
  };
  switch (random.below(9)) {
    case 0: {
      let template: Template | undefined;
      done("freeze", () => template = guest.freeze(), () => {
        copy.base = [...copy.pages];
        if (template === undefined) return;
        templates.push(template);
        pagesOf.set(template, copy.base);
      });
      break;
    }
    case 1: {
      if (templates.length === 0 || copies.length > 6) break;
      const template = random.of(templates);
      let clone: GuestMemoryManager | undefined;
      done("clone", () => clone = template.clone(), () => {
        const pages = pagesOf.get(template) ?? [];
        if (clone !== undefined) copies.push({ guest: clone, pages: [...pages], base: [...pages] });
      });
      break;
    }
    case 2:
      done("rollback", () => guest.rollback(), () => copy.pages = [...copy.base ?? copy.pages]);
      break;
    case 3:
      done("thaw", () => guest.thaw(), () => copy.base = null);
      break;
    case 4: {
      if (templates.length === 0) break;
      const template = random.of(templates);
      done(
        "dispose a template",
        () => template[Symbol.dispose](),
        () => templates.splice(templates.indexOf(template), 1),
      );
      break;
    }
    case 5: {
      if (copies.length < 2 || copy === copies[0]) break;
      done("dispose a clone", () => guest[Symbol.dispose](), () => copies.splice(copies.indexOf(copy), 1));
      break;
    }
    default: {
      const page = random.below(PAGES);
      const value = 1 + random.below(255);
      done("write", () => guest.memory.fill(page * PAGE, PAGE, value), () => copy.pages[page] = value);
    }
  }
}

const family: Family = {
  name: "copies",
  async attack(random, notes) {
    const make = () =>
      GuestMemoryManager.create({ maxAddress: 2 ** 24, ram: [{ ranges: [MemoryRange.of(0, PAGES * PAGE)] }] });
    make()[Symbol.dispose]();
    const before = await baseline();
    const copies: Copy[] = [{ guest: make(), pages: new Array(PAGES).fill(0), base: null }];
    const templates: Template[] = [];
    const pagesOf = new Map<Template, number[]>();
    for (let i = 0; i < 300; i++) {
      if (random.oneIn(8)) {
        using _limited = random.oneIn(2) ? noDescriptors() : littleAddressSpace(2 ** 23);
        act(random, notes, copies, templates, pagesOf);
      } else {
        act(random, notes, copies, templates, pagesOf);
      }
      for (const copy of copies) check(copy, notes);
    }
    const all: Disposable[] = [...copies.map(({ guest }) => guest), ...templates];
    while (all.length > 0) notes.try("dispose", () => all.splice(random.below(all.length), 1)[0]?.[Symbol.dispose]());
    for (const left of await leakedAtLast(before)) notes.broken(left);
  },
};

export default family;
