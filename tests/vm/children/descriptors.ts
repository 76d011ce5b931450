/**
 * A process without a file descriptor left.
 *
 * @module
 */

import { GuestMemoryManager, Mappable, VaMapper } from "membacking";
import { EventFd, Kvm, KvmVcpu } from "membacking/kvm";
import { mappings, openFds } from "../../support/proc.ts";
import { Machine } from "../machine.ts";
import { type Failure, failureOf, pagesFrom, report } from "./attempt.ts";
import { noDescriptors } from "./limits.ts";
import { range } from "../../support/units.ts";

using machine = new Machine();
const guest = machine.attached();
const late = machine.witness();
const [file, other] = [machine.file(1), machine.file(2)];
using kvm = Kvm.open();
using vm = kvm.createVm();

/** What needs a descriptor of its own. */
const needy: Readonly<Record<string, () => Disposable>> = {
  "Mappable.memfd": () => Mappable.memfd("one more", 0x1000),
  "Mappable.open": () => Mappable.open(`/proc/self/fd/${file.fd}`),
  "Mappable.fromFd": () => Mappable.fromFd(file.fd),
  "Kvm.open": () => Kvm.open(),
  "Kvm.createVm": () => kvm.createVm(),
  "KvmVm.createVcpu": () => vm.createVcpu(3),
  "KvmVcpu.attach": () => KvmVcpu.attach(late.vcpu.share()),
  "EventFd": () => new EventFd(),
  "GuestMemoryManager.create": () =>
    GuestMemoryManager.create({ maxAddress: 2 ** 30, ram: [{ ranges: [range(0, 2 ** 21)] }] }),
};
const tryAll = (): Record<string, Failure | null> =>
  Object.fromEntries(
    Object.entries(needy).map(([name, make]) => [name, failureOf(() => make()[Symbol.dispose]())]),
  );

/** How many descriptors there are, and mappings of files. */
const held = () => ({ fds: openFds(), files: mappings().filter(({ file }) => file !== "").length });

const pages = pagesFrom(0, 6);
const before = held();
let failures: Record<string, Failure | null>;
{
  using _none = noDescriptors();
  failures = tryAll();
}
const after = held();
let requests: Failure | null;
let seen;
{
  using _none = noDescriptors();
  // A region needs none: whatever it maps has its descriptor already.
  requests = failureOf(() => {
    using _more = VaMapper.reserve(2 ** 30);
    const region = machine.region(0, 0x4000);
    region.addMapping({ rangeInRegion: range(0, 0x4000), mappable: file });
    region.map();
    region.addMapping({ rangeInRegion: range(0x1000, 0x2000), mappable: other, writable: false });
    region.removeMappings(range(0x3000, 0x4000));
    machine.backed(0x4000, 0x5000, "private");
    machine.regions.addPartition(late.vm);
    machine.regions.memory.lock(range(0, 0x2000))[Symbol.dispose]();
  });
  seen = { guest: guest.look(pages), late: late.look(pages) };
}
report({ before, failures, after, requests, seen, retried: tryAll() });
