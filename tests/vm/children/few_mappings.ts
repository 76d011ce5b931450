/**
 * The kernel's limit on mappings, reached through what is not guest memory: the manager cannot know, and the kernel
 * refuses in the middle of a request.
 *
 * @module
 */

import { Machine } from "../machine.ts";
import { attempt, pagesFrom, report } from "./attempt.ts";
import { fewMappings } from "./limits.ts";
import { PAGE, range } from "../../support/units.ts";

const START = 0x10_0000;
/** How many pages, with a page between each two, a request changes. Each of them costs two mappings. */
const PIECES = 100;
const LENGTH = 2 * PIECES * PAGE;
/** How many mappings there are to be had. */
const SPARE = PIECES;

using machine = new Machine();
const guest = machine.attached();
const [file, other] = [machine.file(1), machine.file(2)];
const pages = pagesFrom(START - PAGE, 2 * PIECES + 2);
const cause = () => fewMappings(SPARE);
const piece = (i: number) => range(2 * i * PAGE, (2 * i + 1) * PAGE);
const eachPiece = (request: (i: number) => void) => () =>
  machine.regions.batch(() => {
    for (let i = 0; i < PIECES; i++) request(i);
  });

// A region of pieces that covers a region of one large mapping.
machine.backed(START, START + LENGTH, file);
const above = machine.region(START, START + LENGTH, { priority: 1 });
eachPiece((i) => above.addMapping({ rangeInRegion: piece(i), mappable: other, fileOffset: i * PAGE }))();
const cover = attempt({ machine, guest, pages, cause, request: () => above.map() });
above[Symbol.dispose]();

// Pieces put over one large mapping, and pieces taken out of it.
const window = machine.region(START, START + LENGTH, { priority: 1, holes: "fault" });
window.addMapping({ rangeInRegion: range(0, LENGTH), mappable: file });
window.map();
const replacement = attempt({
  ...{ machine, guest, pages, cause },
  request: eachPiece((i) => window.addMapping({ rangeInRegion: piece(i), mappable: other, writable: false })),
});
window.addMapping({ rangeInRegion: range(0, LENGTH), mappable: file });
const removal = attempt({
  ...{ machine, guest, pages, cause },
  request: eachPiece((i) => window.removeMappings(piece(i))),
});
window[Symbol.dispose]();

// Regions that are one mapping to the kernel, every second one of them made read-only.
const regions = Array.from({ length: 2 * PIECES }, (_, i) => {
  const start = 0x30_0000 + i * PAGE;
  return machine.backed(start, start + PAGE, file, { fileOffset: i * PAGE });
});
const protection = attempt({
  ...{ machine, guest, cause },
  pages: pagesFrom(0x30_0000, 2 * PIECES),
  request: eachPiece((i) => regions[2 * i]?.map({ writable: false })),
});
report({ cover, replacement, removal, protection });
