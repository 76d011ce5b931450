/**
 * All memory slots that KVM has, and one more.
 *
 * @module
 */

import { Mappable } from "membacking";
import { Machine, Observed, stamp } from "../machine.ts";
import { HOME } from "../witness.ts";
import { attempt, failureOf, report, snapshot } from "./attempt.ts";
import { PAGE, range } from "../../support/units.ts";

using machine = new Machine({ length: 2 ** 28 });
const guest = machine.witness({ reach: 2 ** 28 });
const { vm } = guest;
// One slot is the guest's home.
const capacity = vm.capacity - 1;
machine.regions.addPartition(new Observed(vm, capacity));

const pieces = capacity + 1000;
using file = Mappable.memfd("pieces", pieces * PAGE);
const pages = [0, 1, capacity - 2, capacity - 1, capacity, pieces - 1].map((page) => page * PAGE);
for (const at of pages) file.write(at, new Uint8Array(new Uint32Array([stamp(1, at / PAGE)]).buffer));
const piece = (i: number) => range(i * PAGE, (i + 1) * PAGE);

/** A region of one mapping per page. */
function regionOf(writable: (i: number) => boolean) {
  const region = machine.region(0, pieces * PAGE);
  for (let i = 0; i < pieces; i++) {
    region.addMapping({ rangeInRegion: piece(i), mappable: file, fileOffset: i * PAGE, writable: writable(i) });
  }
  return region;
}

/** Makes a request that fails, and says whether anything changed. */
function refused(request: () => void) {
  const look = () => JSON.stringify(snapshot({ machine, guest, pages }));
  const before = look();
  return { error: failureOf(request), same: look() === before };
}

// Every second page is read-only, so that no two can share a slot.
const mixed = regionOf((i) => i % 2 === 0);
const tooMany = refused(() => mixed.map());
mixed[Symbol.dispose]();

// Pages that can share slots do so as far as there are too few of them, and somebody else has taken one more.
const alike = regionOf(() => true);
const { hva = 0 } = vm.slots.find(({ range }) => range.equals(HOME)) ?? {};
const foreign = range(HOME.end, HOME.end + PAGE);
const { before, error, after, retried } = attempt({
  ...{ machine, guest, pages },
  request: () => alike.map(),
  cause: () => {
    vm.mapRange(hva, foreign, { writable: true, executable: true });
    return { [Symbol.dispose]: () => vm.unmapRange(foreign) };
  },
});
const taken = { error, same: JSON.stringify(after) === JSON.stringify(before), retried };
const full = { slots: vm.slots.length, seen: guest.look(pages) };

// Now that all are in use: one more, another memory in one that is there, and one more for one less.
const last = machine.region(pieces * PAGE, (pieces + 1) * PAGE);
last.addMapping({ rangeInRegion: piece(0), mappable: file });
const oneMore = refused(() => last.map());
const inPlace = failureOf(() => alike.addMapping({ rangeInRegion: piece(0), mappable: file, fileOffset: PAGE }));
alike.removeMappings(piece(pieces - 1));
const afterOneLess = failureOf(() => last.map());
const seen = guest.look([0, pieces * PAGE, (pieces - 1) * PAGE]);
report({ capacity, pieces, tooMany, taken, full, oneMore, inPlace, afterOneLess, seen });
