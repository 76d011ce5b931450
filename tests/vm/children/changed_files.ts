/**
 * Files that somebody else changes after they have been mapped.
 *
 * @module
 */

import { Mappable } from "membacking";
import { libc } from "../../../ffi/os/libc.ts";
import { F_ADD_SEALS, F_SEAL_FUTURE_WRITE } from "../../../ffi/os/mman.ts";
import { unwrap } from "../../../ffi/os/os_error.ts";
import { Machine } from "../machine.ts";
import { failureOf, pagesFrom, report, snapshot } from "./attempt.ts";
import { range } from "../../support/units.ts";

const { sys, errno } = libc();

using machine = new Machine();
const guest = machine.attached();
const low = machine.file(1);

// The file gets shorter under the guest, and long again.
using shrinking = Mappable.memfd("shrinking", 0x4000, { seal: false });
for (let page = 0; page < 4; page++) shrinking.write(page * 0x1000, new Uint8Array([page + 1]));
const region = machine.backed(0, 0x4000, shrinking);
const look = () => ({
  guest: guest.look(pagesFrom(0, 4)),
  host: pagesFrom(0, 4).map((gpa) => failureOf(() => void machine.regions.memory.readUint8(gpa))?.name ?? "read"),
});
const resize = (length: number) => unwrap(sys.ftruncate(shrinking.fd, BigInt(length)), errno[0], "ftruncate");
const whole = look();
resize(0x2000);
const shortened = look();
const store = guest.store(0x3000, 1);
const again = failureOf(() => region.addMapping({ rangeInRegion: range(0, 0x4000), mappable: shrinking }));
resize(0x4000);
const restored = look();
region[Symbol.dispose]();

// The file is sealed against writing between being added and being shown, above memory that is there.
machine.backed(0, 0x4000, low);
using sealed = Mappable.memfd("sealed", 0x4000, { seal: false });
sealed.write(0, new Uint8Array([9]));
const above = machine.region(0, 0x4000, { priority: 1 });
above.addMapping({ rangeInRegion: range(0, 0x1000), mappable: low, fileOffset: 0x8000 });
above.addMapping({ rangeInRegion: range(0x2000, 0x4000), mappable: sealed });
unwrap(sys.fcntl(sealed.fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), errno[0], "fcntl");
const pages = pagesFrom(0, 4);
const before = snapshot({ machine, guest, pages });
const error = failureOf(() => above.map());
const after = snapshot({ machine, guest, pages });
// A seal stays: what helps is to ask for less.
above.addMapping({ rangeInRegion: range(0x2000, 0x4000), mappable: sealed, writable: false });
above.map();
report({ whole, shortened, store, again, restored, seal: { before, error, after }, seen: guest.look(pages) });
