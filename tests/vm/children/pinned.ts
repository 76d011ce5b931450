/**
 * A process that may lock little memory.
 *
 * @module
 */

import { status } from "../../support/proc.ts";
import { Machine } from "../machine.ts";
import { attempt, pagesFrom, report } from "./attempt.ts";
import { lockAtMost } from "./limits.ts";
import { range } from "../../support/units.ts";

const KIB = 1024;
const locked = () => status("VmLck") * KIB;

using machine = new Machine();
const [file, other] = [machine.file(1), machine.file(2)];
const guest = machine.attached({ pin: true });
machine.backed(0, 0x1_0000, file);
const lockedAtFirst = locked();

// A region of three pieces, of which the limit allows one.
const pieces = machine.region(0x10_0000, 0x14_0000);
for (const start of [0, 0x1_0000, 0x2_0000]) {
  pieces.addMapping({ rangeInRegion: range(start, start + 0x8000), mappable: file, fileOffset: start });
}
const region = attempt({
  ...{ machine, guest, pages: [...pagesFrom(0, 2), ...pagesFrom(0x10_0000, 2), ...pagesFrom(0x12_0000, 2)] },
  request: () => pieces.map(),
  cause: () => lockAtMost(locked() + 0x8000),
});
const lockedThen = locked();

// A partition that wants all of its memory pinned, and may not pin any.
using unpinned = new Machine();
const stranger = unpinned.witness();
unpinned.backed(0, 0x1_0000, file);
const partition = attempt({
  ...{ machine: unpinned, guest: stranger, pages: pagesFrom(0, 2) },
  request: () => unpinned.regions.addPartition(stranger.vm, { pin: true }),
  cause: () => lockAtMost(0),
});

// Memory that is replaced has to be pinned anew, which the limit does not allow any more; nor does it allow to pin what
// was there before.
const tight = attempt({
  ...{ machine, guest, pages: pagesFrom(0x10_0000, 2) },
  request: () => pieces.addMapping({ rangeInRegion: range(0, 0x8000), mappable: other }),
  cause: () => lockAtMost(0),
});
report({ lockedAtFirst, region, lockedThen, partition, tight, lockedAtLast: locked() });
