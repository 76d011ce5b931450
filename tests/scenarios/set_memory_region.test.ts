/**
 * What the kernel's set_memory_region_test asserts of memory slots, asserted of requests of this package.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { Mappable, MemoryRange, OsError } from "membacking";
import { Kvm } from "membacking/kvm";
import type { VcpuReport } from "../support/guest.ts";
import { kvmTest } from "../support/require.ts";
import { PAGE } from "../support/units.ts";
import { FREE, NOTHING, rounds, Scenario, UNDISTURBED } from "./rig.ts";

const LOOPS = 10;
const MIB = 0x10_0000;
/** Where the guest looks. */
const PLACE = 0xc000_0000;
const WINDOW = { start: PLACE - 2 * MIB, end: PLACE + 4 * MIB };
/** What the guest saw: a count, and then each value that differs from the one before. */
const SEEN = FREE;
const MOST_SEEN = 4096;

/** Reads a word again and again, and notes what is new. */
const watch = rounds(0, (code) =>
  code.set("rbx", PLACE).load("rcx", "rbx", 8)
    .set("rdi", SEEN).load("rdx", "rdi", 8).move("r8", "rdx").addRegister("r8", "r8").addRegister("r8", "r8")
    .addRegister("r8", "r8").addRegister("r8", "rdi") // the last note
    .compare("rdx", 0).jumpIf("equal", "new").load("r9", "r8", 8).compareRegister("rcx", "r9").jumpIf(
      "equal",
      "end of round",
    )
    .label("new").compare("rdx", MOST_SEEN).jumpIf("aboveOrEqual", "end of round")
    .store("r8", "rcx", 8, 8).add("rdx", 1).store("rdi", "rdx", 8));

function seen(scenario: Scenario): bigint[] {
  const { memory } = scenario.memory;
  const count = Number(memory.readBigUint64(SEEN));
  return Array.from({ length: count }, (_, i) => memory.readBigUint64(SEEN + 8 + 8 * i));
}

/** A window of 2 MiB: its first page begins with 1, the second one with 5. */
function window(scenario: Scenario): { window: ReturnType<typeof scenario.memory.newDeviceMemory>; file: Mappable } {
  const file = Mappable.memfd("window", 2 * MIB);
  const device = scenario.memory.newDeviceMemory("window", file.size);
  device.map({ offset: 0, mappable: file });
  file.write(0, word(1n));
  file.write(PAGE, word(5n));
  return { window: device, file };
}

function word(value: bigint): Uint8Array<ArrayBuffer> {
  return new Uint8Array(new BigUint64Array([value]).buffer);
}

kvmTest("a vCPU without any memory comes out with an error, and does not hang", () => {
  using kvm = Kvm.open();
  using vm = kvm.createVm();
  using vcpu = vm.createVcpu(0);
  vcpu.setCpuid2(kvm.getSupportedCpuid());
  // One KVM has an exit for it, another one fails to run at all.
  let outcome: string;
  try {
    outcome = vcpu.run().kind;
  } catch (error) {
    assert(error instanceof OsError);
    outcome = error.code;
  }
  assert(["internal-error", "ENOSPC"].includes(outcome), outcome);
});

for (const zapAllOnSlotDelete of [true, false]) {
  for (const quiesce of [true, false]) {
    const how = `zapAllOnSlotDelete ${zapAllOnSlotDelete}, ${quiesce ? "held" : "not held"}`;

    kvmTest(
      `memory that is moved while a guest reads it is seen before or after, never elsewhere (${how})`,
      async () => {
        await using scenario = new Scenario({ ram: 4 * MIB, ranges: [WINDOW], quiesce, zapAllOnSlotDelete });
        const { window: device, file } = window(scenario);
        using _file = file;
        device.mapToGuest(PLACE, true);
        await scenario.start([watch]);
        await scenario.aRound();
        for (let i = 0; i < LOOPS; i++) {
          device.mapToGuest(PLACE - PAGE, true);
          // At the place where the guest looks is the second page now.
          file.write(0, word(2n));
          await scenario.aRound();
          file.write(0, word(1n));
          device.mapToGuest(PLACE, true);
          await scenario.aRound();
        }
        const [report] = await scenario.stop() as [VcpuReport];
        // Without a hold it may have looked while there was nothing, and then exactly there.
        assert(report.mmio.every(({ gpa, isWrite }) => gpa === PLACE && !isWrite));
        const values = seen(scenario);
        if (quiesce) {
          assertEquals(report.exits, UNDISTURBED);
          assertEquals(values, [1n, ...Array.from({ length: LOOPS }, () => [5n, 1n]).flat()]);
          assertEquals(scenario.held, 2 * LOOPS);
        } else {
          assert(values.every((value) => value === 1n || value === 5n || value === NOTHING), values.join(" "));
          assertEquals(values.filter((value) => value === 5n).length >= LOOPS, true);
        }
        assertEquals(report.end, "stop-port");
      },
    );
  }

  kvmTest(
    `memory that is unmapped under a guest is gone at once, and comes back as it was (zapAllOnSlotDelete ${zapAllOnSlotDelete})`,
    async () => {
      await using scenario = new Scenario({ ram: 4 * MIB, ranges: [WINDOW], zapAllOnSlotDelete });
      const { window: device, file } = window(scenario);
      using _file = file;
      device.mapToGuest(PLACE, true);
      await scenario.start([watch]);
      await scenario.aRound();
      for (let i = 0; i < LOOPS; i++) {
        device.unmapFromGuest();
        await scenario.aRound();
        device.mapToGuest(PLACE, true);
        await scenario.aRound();
      }
      const [report] = await scenario.stop() as [VcpuReport];
      assertEquals(seen(scenario), [1n, ...Array.from({ length: LOOPS }, () => [NOTHING, 1n]).flat()]);
      assert(report.mmio.length > 0);
      assert(report.mmio.every(({ gpa, isWrite }) => gpa === PLACE && !isWrite));
    },
  );
}

kvmTest("a guest whose own memory is taken away does not run on", async () => {
  await using scenario = new Scenario({ ram: 4 * MIB, ranges: [WINDOW] });
  // It counts in memory that stays.
  const { window: device, file } = window(scenario);
  using _file = file;
  device.mapToGuest(PLACE, true);
  const count = rounds(0, (code) => code.set("rbx", PLACE).set("rcx", 1).atomicAdd("rbx", "rcx"));
  await scenario.start([count]);
  await scenario.aRound();
  scenario.memory.setRamVisibility(new MemoryRange(0, 4 * MIB), "unmapped");
  const counted = () => {
    const bytes = new Uint8Array(8);
    file.read(0, bytes);
    return new DataView(bytes.buffer).getBigUint64(0, true);
  };
  const before = counted();
  // What a vCPU without memory does depends on the KVM: it ends, or it waits for a kick.
  const [report] = await scenario.kick() as [VcpuReport];
  assert(["shutdown", "internal-error", "asked"].includes(report.end), report.end);
  assertEquals(counted(), before);
});
