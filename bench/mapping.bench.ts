/**
 * How long it takes until a change of the memory map has happened, beside the same system calls by bare FFI: alone in a
 * manager, and in a manager with what a VMM has (see `vmm.ts`). `deno bench -A` runs it; `deno task bench` measures the
 * same rows round by round, which is what ratios are to be taken from.
 *
 * @module
 */

import { Kvm } from "membacking/kvm";
import { BARE } from "./bare.ts";
import { type Bench, type Machine, newFile, OURS } from "./ours.ts";
import { IN_A_VMM, Vmm } from "./vmm.ts";

/** What one iteration is: of each pair of requests, the second takes back what the first did. */
const GROUPS: readonly { title: string; alone: string; inVmm: string | null }[] = [
  { title: "map and unmap 4 KiB in a window (2 mmap)", alone: "window-4k", inVmm: null },
  { title: "map and unmap 64 KiB in a window (2 mmap)", alone: "window-64k", inVmm: "vmm-window-64k" },
  { title: "map and unmap 64 KiB by DeviceMemory (2 mmap)", alone: "device-64k", inVmm: "vmm-device-64k" },
  { title: "replace 64 KiB, twice (2 mmap)", alone: "replace-64k", inVmm: "vmm-replace-64k" },
  { title: "switch two regions of 2 MiB, and back (2 mmap)", alone: "switch", inVmm: "vmm-switch" },
  { title: "map and unmap 64 KiB with a slot (2 mmap, 2 ioctl)", alone: "slot-64k", inVmm: null },
  { title: "read-only on and off, 2 MiB (2 mprotect, 4 ioctl)", alone: "protect", inVmm: null },
  { title: "move a BAR of 64 KiB, and back (4 mmap, 4 ioctl)", alone: "bar-move", inVmm: "vmm-bar-move" },
];

let noKvm: string | null = null;
let machine: Machine | undefined;
let vmm: Vmm | undefined;
try {
  const kvm = Kvm.open();
  machine = { kvm, vm: kvm.createVm(), file: newFile() };
  vmm = await Vmm.start(machine, { hook: false });
} catch (error) {
  noKvm = error instanceof Error ? error.message : String(error);
}

/** The row that is being measured. Each is made when its turn comes, so that no other is there beside it. */
let current: { readonly of: object; readonly bench: Bench } | undefined;

function measure(group: string, name: string, make: (machine: Machine, vmm: Vmm) => Bench): void {
  const of = {};
  Deno.bench({
    name: noKvm === null ? name : `${name} [ignored: ${noKvm}]`,
    group,
    baseline: name === "bare FFI",
    ignore: noKvm !== null,
    fn() {
      if (current?.of !== of && machine !== undefined && vmm !== undefined) {
        current?.bench[Symbol.dispose]();
        current = { of, bench: make(machine, vmm) };
      }
      current?.bench.run(1);
    },
  });
}

for (const { title, alone, inVmm } of GROUPS) {
  measure(title, "bare FFI", (machine) => BARE[alone]!(machine));
  measure(title, "membacking, alone", (machine) => OURS[alone]!(machine));
  if (inVmm !== null) measure(title, "membacking, in a VMM", (machine, vmm) => IN_A_VMM[inVmm]!(vmm, machine));
}
