/**
 * The manager's own limit on kernel mappings: reached by guest memory alone, and well before the kernel's.
 *
 * @module
 */

import { spareMappings } from "../../../ffi/host/mapping_budget.ts";
import { mappings } from "../../support/proc.ts";
import { Machine } from "../machine.ts";
import { failureOf, report, snapshot } from "./attempt.ts";
import { mappingLimit } from "./limits.ts";
import { PAGE, range } from "../../support/units.ts";

using machine = new Machine({ length: 2 ** 30 });
const guest = machine.attached({ reach: 2 ** 30 });
const file = machine.file(1);
const spare = spareMappings();
/** As many pieces as there can be with a hole after each. */
const most = Math.floor(spare / 2) - 2;
const tooMany = most + 300;
const piece = (i: number) => range(2 * i * PAGE, (2 * i + 1) * PAGE);
// One slot for all of them: it is host mappings that are scarce here.
const region = machine.region(0, 2 * tooMany * PAGE, { holes: "fault" });
const add = (i: number) => region.addMapping({ rangeInRegion: piece(i), mappable: file, fileOffset: i % 16 * PAGE });
const ends = [0, 1, 2, 2 * most - 4, 2 * most - 2, 2 * most].map((page) => page * PAGE);

/** Makes a request that fails, and says whether anything changed. */
function refused(request: () => void) {
  const look = () => JSON.stringify(snapshot({ machine, guest, pages: ends }));
  const before = look();
  return { error: failureOf(request), same: look() === before };
}

for (let i = 0; i < tooMany; i++) add(i);
const tooManyAtOnce = refused(() => region.map());
region.removeMappings(range(2 * most * PAGE, 2 * tooMany * PAGE));
region.map();
const seen = guest.look(ends);
const inProcess = mappings().length;
let next = most;
let oneMore = refused(() => add(next++));
while (oneMore.error === null) oneMore = refused(() => add(next++));
// Whoever needs memory of the process gets it, V8 above all.
const heap = Array.from({ length: 100 }, () => new Array(100_000).fill(0).map(Math.random));
// The heap has taken some meanwhile, and that is counted.
for (let i = 3; i < 600; i++) region.removeMappings(piece(i));
const afterSomeLess = failureOf(() => add(3));
report({
  ...{ limit: mappingLimit(), spare, most, inProcess, added: next - most, seen },
  ...{ tooManyAtOnce, oneMore, afterSomeLess, heap: heap.length },
});
