/**
 * The smallest VMM: 64 KiB of memory, four bytes of code, and the end at its first exit.
 *
 * @module
 */

import { GuestMemoryManager, MemoryRange } from "membacking";
import { Kvm } from "membacking/kvm";

const SIZE = 0x1_0000;
const CODE = 0x1000;

using kvm = Kvm.open();
using vm = kvm.createVm();
using guest = GuestMemoryManager.create({ maxAddress: SIZE, ram: [{ ranges: [MemoryRange.of(0, SIZE)] }] });
guest.attachPartition(vm);
guest.memory.write(CODE, new Uint8Array([0xe6, 0x10, 0xeb, 0xfc])); // out 0x10, al; jmp to the out

using vcpu = vm.createVcpu(0);
const { cs } = vcpu.getSregs();
vcpu.setSregs({ cs: { ...cs, base: 0n, selector: 0 } });
vcpu.setRegs({ rip: BigInt(CODE), rflags: 2n });
const exit = vcpu.run();
if (exit.kind !== "io" || exit.port !== 0x10) throw new Error(`Unexpected exit "${exit.kind}"`);
