/**
 * A pool of huge pages with fewer free pages than somebody wants.
 *
 * @module
 */

import { Mappable } from "membacking";
import { cString, libc } from "../../../ffi/libc.ts";
import { MFD_CLOEXEC, MFD_HUGE_SHIFT, MFD_HUGETLB } from "../../../ffi/mman.ts";
import { unwrap } from "../../../ffi/os_error.ts";
import { readProc } from "../../proc.ts";
import { Machine, range } from "../machine.ts";
import { failureOf, pagesFrom, report, snapshot } from "./attempt.ts";

const HUGE = 2 ** 21;
const number = (text: string, name: RegExp) => Number(name.exec(text)?.[1] ?? 0);
const free = number(readProc("/proc/meminfo"), /^HugePages_Free:\s*(\d+)/m) +
  Number(readProc("/proc/sys/vm/nr_overcommit_hugepages"));
// Out of reach even if somebody adds to the pool meanwhile.
const wanted = free + 512;
const length = wanted * HUGE;

/** A hugetlb memfd without pages taken from the pool, as another program might hand one over. */
function unreserved(): Mappable {
  const { sys, errno } = libc();
  const flags = MFD_CLOEXEC | MFD_HUGETLB | (21 << MFD_HUGE_SHIFT);
  const fd = unwrap(sys.memfd_create(cString("unreserved"), flags), errno[0], "memfd_create");
  try {
    unwrap(sys.ftruncate(fd, BigInt(length)), errno[0], "ftruncate");
    return Mappable.fromFd(fd);
  } finally {
    sys.close(fd);
  }
}

using machine = new Machine({ length });
const guest = machine.attached();
const file = machine.file(1, HUGE);
const region = machine.region(0, length);
// Live memory in the first huge page and in the third, and holes around.
region.addMapping({ rangeInRegion: range(0, HUGE), mappable: file });
region.addMapping({ rangeInRegion: range(2 * HUGE, 3 * HUGE), mappable: file });
region.map();

const creation = failureOf(() => void Mappable.memfd("huge", length, { hugepageSize: HUGE }));
using huge = unreserved();
const pages = [0, HUGE, 2 * HUGE, 3 * HUGE].flatMap((start) => pagesFrom(start, 2));
const before = snapshot({ machine, guest, pages });
const errors = Array.from(
  { length: 20 },
  () => failureOf(() => region.addMapping({ rangeInRegion: region.range, mappable: huge })),
);
const after = snapshot({ machine, guest, pages });
const stored = guest.store(0x10, 77);
report({ wanted, creation, before, errors, after, stored, read: machine.regions.memory.readUint32(0x10) });
