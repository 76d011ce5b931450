/**
 * A pool of huge pages with fewer free pages than somebody wants.
 *
 * @module
 */

import { Mappable } from "membacking";
import { HUGE_PAGE, tooManyHugePages, unreservedHugePages } from "../huge_pages.ts";
import { Machine } from "../machine.ts";
import { failureOf, pagesFrom, report, snapshot } from "./attempt.ts";
import { range } from "../../support/units.ts";

const length = tooManyHugePages() * HUGE_PAGE;

using machine = new Machine({ length });
const guest = machine.attached();
const file = machine.file(1, HUGE_PAGE);
const region = machine.region(0, length);
// Live memory in the first huge page and in the third, and holes around.
region.addMapping({ rangeInRegion: range(0, HUGE_PAGE), mappable: file });
region.addMapping({ rangeInRegion: range(2 * HUGE_PAGE, 3 * HUGE_PAGE), mappable: file });
region.map();

const creation = failureOf(() => void Mappable.memfd("huge", length, { hugepageSize: HUGE_PAGE }));
using huge = unreservedHugePages(length);
const pages = [0, 1, 2, 3].flatMap((i) => pagesFrom(i * HUGE_PAGE, 2));
const before = snapshot({ machine, guest, pages });
const errors = Array.from(
  { length: 20 },
  () => failureOf(() => region.addMapping({ rangeInRegion: region.range, mappable: huge })),
);
const after = snapshot({ machine, guest, pages });
const stored = guest.store(0x10, 77);
report({
  wanted: length / HUGE_PAGE,
  creation,
  before,
  errors,
  after,
  stored,
  read: machine.regions.memory.readUint32(0x10),
});
