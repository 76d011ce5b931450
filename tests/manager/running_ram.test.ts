/** RAM that changes under a guest that runs natively all the while, in a thread of its own. */
import { assertEquals, assertGreater } from "@std/assert";
import { GuestMemoryManager, Mappable, type RamBacking } from "membacking";
import { LongModeCode, REPORT_PORT, VcpuThread } from "../support/guest.ts";
import { kvmTest } from "../support/require.ts";
import { PAGE, range } from "../support/units.ts";
import { NOTES, Witness } from "../vm/witness.ts";

const MIB = 2 ** 20;
const RAM = range(0, 4 * MIB);
const WINDOW = range(2 * MIB, 2 * MIB + 64 * PAGE);
const SWEEPS = NOTES;

/** Looks at each page of the window: it holds zero or its own address, which is stored then; anything else is reported. */
function program(): Uint8Array {
  return new LongModeCode()
    .set("r8", SWEEPS).set("r9", 1).set("r10", WINDOW.end)
    .label("sweep").set("rbx", WINDOW.start)
    .label("next").load("rax", "rbx", 4)
    .compare("rax", 0).jumpIf("equal", "good")
    .compareRegister("rax", "rbx").jumpIf("equal", "good")
    .out(REPORT_PORT)
    .label("good").store("rbx", "rbx", 4)
    .add("rbx", PAGE).compareRegister("rbx", "r10").jumpIf("below", "next")
    .atomicAdd("r8", "r9").jump("sweep")
    .bytes();
}

async function until(reached: () => boolean): Promise<void> {
  while (!reached()) await new Promise((resolve) => setTimeout(resolve, 0));
}

for (const kind of ["shared", "private", "copy-on-write"] as const) {
  kvmTest(
    `a guest that runs on sees zeros where ${kind} RAM is discarded, and no exit, while RAM comes and goes`,
    async () => {
      using file = Mappable.memfd("saved", 4 * MIB);
      const ram: RamBacking = kind === "copy-on-write"
        ? { ranges: [RAM], backing: file, copyOnWrite: true }
        : { ranges: [RAM], backing: kind };
      let pause = (): Disposable => ({ [Symbol.dispose]() {} });
      using guest = GuestMemoryManager.create({ maxAddress: 64 * MIB, ram: [ram], quiesce: () => pause() });
      using witness = new Witness();
      using _attached = guest.attachPartition(witness.vm);
      witness.begin(program());
      const thread = await VcpuThread.start(witness.vcpu);
      pause = () => thread.pause();
      let ended = false;
      thread.ended.finally(() => ended = true).catch(() => {});
      const sweeps = () => ended ? Infinity : witness.note(SWEEPS);
      try {
        await until(() => sweeps() > 10);
        for (let round = 0; round < 40; round++) {
          const first = WINDOW.start + round % 32 * PAGE;
          guest.discard(range(first, first + 32 * PAGE));
          const dimm = guest.addRam({ ranges: [range(32 * MIB, 33 * MIB)] });
          guest.memory.writeUint8(32 * MIB, round);
          dimm[Symbol.dispose]();
          const before = sweeps();
          await until(() => sweeps() > before + 1);
          // What was discarded is the guest's again: it has stored its addresses.
          assertEquals(guest.memory.readUint32(first), first);
        }
        assertGreater(witness.note(SWEEPS), 40);
      } finally {
        const { end, detail, exits, portWrites, mmio } = await thread.stop();
        const { interrupted: _, ...unexpected } = exits;
        assertEquals({ end, detail, unexpected, reports: portWrites.slice(0, 3), mmio: mmio.slice(0, 3) }, {
          ...{ end: "asked", detail: "", unexpected: {}, reports: [], mmio: [] },
        });
      }
    },
  );
}
