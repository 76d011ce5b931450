/**
 * Memory slots that were made behind the manager's back.
 *
 * @module
 */

import { HostAddresses } from "../../../ffi/host/host_addresses.ts";
import { ioctl } from "../../../ffi/kvm/ioctl.ts";
import { MEMORY_REGION } from "../../../ffi/kvm/layout.ts";
import { Machine } from "../machine.ts";
import type { Witness } from "../witness.ts";
import { attempt, failureOf, pagesFrom, report, snapshot } from "./attempt.ts";
import { PAGE, range } from "../../support/units.ts";

using machine = new Machine();
const guest = machine.attached();
const [file, other] = [machine.file(1), machine.file(2)];
using elsewhere = HostAddresses.reserve(2 ** 21);
elsewhere.map(0, 2 ** 20, machine.file(99), 0, true, undefined);

/** Makes a slot of two pages by a request of our own, until disposed. */
function foreignSlot({ vm }: Witness, slot: number, gpa: number): Disposable {
  const set = (length: number) => {
    const struct = new Uint8Array(MEMORY_REGION.size);
    const view = new DataView(struct.buffer);
    view.setUint32(MEMORY_REGION.slot, slot, true);
    view.setBigUint64(MEMORY_REGION.guest_phys_addr, BigInt(gpa), true);
    view.setBigUint64(MEMORY_REGION.memory_size, BigInt(length), true);
    view.setBigUint64(MEMORY_REGION.userspace_addr, BigInt(elsewhere.base), true);
    ioctl(vm.fd, "KVM_SET_USER_MEMORY_REGION", struct);
  };
  set(2 * PAGE);
  return { [Symbol.dispose]: () => set(0) };
}

const HIGH_NUMBER = 30_000;

// The third of three pieces is where somebody else has a slot.
const pieces = machine.region(0, 0x1_0000);
for (const start of [0, 0x4000, 0x8000]) {
  pieces.addMapping({ rangeInRegion: range(start, start + 0x3000), mappable: file, fileOffset: start });
}
const overlap = attempt({
  ...{ machine, guest, pages: pagesFrom(0, 8) },
  request: () => pieces.map(),
  cause: () => foreignSlot(guest, HIGH_NUMBER, 0x9000),
});
pieces[Symbol.dispose]();

// A region gives way to a larger one, which cannot have its place.
const small = machine.backed(0x10_0000, 0x10_4000, file);
const exchange = attempt({
  ...{ machine, guest, pages: pagesFrom(0x10_0000, 6) },
  request: () =>
    machine.regions.batch(() => {
      small[Symbol.dispose]();
      machine.backed(0x10_0000, 0x10_8000, other);
    }),
  cause: () => foreignSlot(guest, HIGH_NUMBER, 0x10_6000),
});

// The number that the next slot gets is in use for one of another size.
using vast = new Machine({ length: 2 ** 44 });
const vastGuest = vast.attached();
const numbered = vast.region(0, 0x4000);
numbered.addMapping({ rangeInRegion: range(0, 0x4000), mappable: file });
const number = attempt({
  ...{ machine: vast, guest: vastGuest, pages: pagesFrom(0, 5) },
  request: () => numbered.map(),
  cause: () => foreignSlot(vastGuest, vastGuest.vm.slots.length, 0x30_0000),
});

// One slot has at most 2^31 - 1 pages.
const huge = vast.region(2 ** 43, 2 ** 44, { holes: "fault" });
const look = () => snapshot({ machine: vast, guest: vastGuest, pages: pagesFrom(0, 5) });
const before = look();
const error = failureOf(() => huge.map());
report({ overlap, exchange, number, size: { before, error, after: look() } });
