import { assert, assertEquals } from "@std/assert";
import { Mappable, MemoryRange } from "membacking";
import { Kvm } from "membacking/kvm";
import { firmwareSubject } from "../../examples/clones/firmware.ts";
import { ChipsetMemory } from "../../examples/firmware/chipset_memory.ts";
import { PAM_RANGES } from "../../examples/firmware/pam.ts";
import { startRealMode } from "../../examples/guest/mod.ts";
import { FIRMWARE } from "../../examples/firmware/machine.ts";
import { noKvm, testUnless } from "../support/require.ts";

const noFirmware = (() => {
  try {
    Deno.statSync(FIRMWARE);
    return undefined;
  } catch {
    return `${FIRMWARE} is missing, install the package seabios`;
  }
})();

const CODE = 0x7c00;
/** mov ax, 0xd000; mov ds, ax; mov [0], bl; hlt: a store that leaves KVM has nothing to be finished later */
const STORE = new Uint8Array([0xb8, 0x00, 0xd0, 0x8e, 0xd8, 0x88, 0x1e, 0x00, 0x00, 0xf4]);
const SHADOW = 0xd_0000;
const BAR = [0xe000_0000, 0xe100_0000];

testUnless(
  noKvm ?? noFirmware,
  "PAM ranges flip and BARs move in clones of firmware that has booted, each for itself",
  async () => {
    using kvm = Kvm.open();
    using subject = await firmwareSubject();
    const { template } = subject;
    const open = (stack: DisposableStack) => {
      const guest = stack.use(template.clone({ overlap: "any" }));
      const vm = stack.use(kvm.createVm());
      stack.use(guest.attachPartition(vm));
      const vcpu = stack.use(vm.createVcpu(0));
      const chipset = new ChipsetMemory(
        {
          newRegion: (options) => guest.regions.newRegion(options),
          newDeviceMemory: (name, length) => guest.newDeviceMemory(name, length),
          memfd: (name, size) => stack.use(Mappable.memfd(name, size)),
          batch: (requests) => guest.regions.batch(requests),
        },
        (_request, carryOut) => carryOut(),
      );
      const flip = (to: "unmapped" | "read-only" | "read-write") => {
        const range = PAM_RANGES.find((range) => range.containsAddress(SHADOW));
        assert(range !== undefined);
        chipset.setVisibility([{ range, to }], "test");
      };
      const store = (value: number) => {
        guest.memory.write(CODE, STORE);
        startRealMode(vcpu, CODE, { rsp: 0x7000n, rbx: BigInt(value) });
        return vcpu.run().kind;
      };
      return { guest, chipset, flip, store };
    };
    using stack = new DisposableStack();
    const [one, other] = [open(stack), open(stack)];
    const memorySize = one.guest.memory.readUint16(0x413);
    for (let round = 1; round <= 50; round++) {
      one.flip("read-write");
      assertEquals([one.store(round), one.guest.memory.readUint8(SHADOW)], ["hlt", round]);
      one.flip("read-only");
      assertEquals([one.store(100), one.guest.memory.readUint8(SHADOW)], ["mmio", round]);
      one.flip("unmapped");
      assertEquals([one.store(100), one.guest.memory.find(SHADOW)], ["mmio", null]);
      const [here, there] = round % 2 === 0 ? [BAR[0]!, BAR[1]!] : [BAR[1]!, BAR[0]!];
      one.chipset.placeBar(1, here, "test");
      if (round > 1) assertEquals(one.guest.memory.readUint32(here), round - 1);
      one.guest.memory.writeUint32(here, round);
      assertEquals(one.guest.memory.find(there), null);
      // What is rolled back is RAM: the map and the memory of devices stay as they are.
      one.guest.memory.writeUint16(0x413, round);
      one.guest.rollback();
      assertEquals([one.guest.memory.readUint16(0x413), one.guest.memory.readUint32(here)], [memorySize, round]);
      assertEquals([other.guest.memory.find(here), other.guest.memory.find(SHADOW)], [null, null]);
    }
    other.flip("read-write");
    assertEquals([other.store(1), other.guest.memory.readUint8(SHADOW)], ["hlt", 1]);
    assertEquals(template.ranges.map(String)[0], String(new MemoryRange(0, 0xa_0000)));
  },
);
