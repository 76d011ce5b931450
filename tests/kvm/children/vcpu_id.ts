/**
 * A vCPU whose page cannot be mapped at first, since the process may have no more address space.
 *
 * @module
 */

import { Kvm } from "membacking/kvm";
import { noAddressSpace } from "../../vm/children/limits.ts";

using kvm = Kvm.open();
using vm = kvm.createVm();
const events: string[] = [];
try {
  using _none = noAddressSpace();
  vm.createVcpu(3);
} catch (error) {
  events.push(String(error).includes("mmap failed with ENOMEM") ? "refused" : String(error));
}
using vcpu = vm.createVcpu(3);
events.push("made", vcpu.getRegs().rip === 0xfff0n ? "runs" : "is odd");
console.log(events.join(", "));
