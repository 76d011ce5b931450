import { assert, assertEquals, assertMatch } from "@std/assert";
import { MemoryRange } from "membacking";
import { bootFloppy, GOOD, LEFT_BEHIND } from "../../examples/firmware/boot_sector.ts";
import { FIRMWARE, Machine, type MachineEvents, type MemoryChange, RAM } from "../../examples/firmware/machine.ts";
import { noKvm, testUnless } from "../support/require.ts";

/** What QEMU 7.2 needs for the same firmware on the same KVM: all changes of memory slots, and the deletes among them. */
const QEMU_CHANGES = 30;
const QEMU_DELETES = 12;

/** What the boot sector looks at. */
const FINDINGS = [
  "int 13h reads the second sector",
  "the F segment ignores writes",
  "the VGA window reads as ones",
  "RAM that PAM makes writable keeps what is written",
  "RAM that PAM makes read-only keeps it still",
  "RAM that PAM takes away reads as ones",
  "RAM that PAM gives back has it again",
  "the card's registers answer",
  "the card's memory is memory",
  "a BAR over RAM stays where it was",
  "a BAR over another gives way to the older one",
  "a BAR over the ROM stays where it was",
  "a BAR over the local APIC stays where it was",
  "a BAR that moves takes its memory along",
  "a card that is switched off reads as ones",
  "a card that is switched on again is as before",
];

const noFirmware = noKvm ?? (exists(FIRMWARE) ? undefined : `${FIRMWARE} is missing, install the package seabios`);

/** Keeps everything in the order in which it happens. */
class Witness implements MachineEvents {
  readonly log: string[] = [];
  readonly findings: string[] = [];
  readonly changes: MemoryChange[] = [];
  readonly refused: string[] = [];
  /** How many changes there were when the boot sector began. */
  firmwareChanges = 0;

  onLog(line: string): void {
    this.log.push(line);
  }
  onFinding(line: string): void {
    if (this.findings.length === 0) this.firmwareChanges = this.changes.length;
    this.findings.push(line);
  }
  onChange(change: MemoryChange): void {
    this.changes.push(change);
  }
  onRefused(why: string): void {
    this.refused.push(why);
  }
}

testUnless(noFirmware, "SeaBIOS boots, and a boot sector finds memory to be what it should be", async () => {
  const witness = new Witness();
  using machine = new Machine({ floppy: bootFloppy(), events: witness });
  const end = await machine.boot(AbortSignal.timeout(300_000)); // it takes some seconds

  assertEquals(end.why, "done");
  assertMatch(witness.log[0] ?? "", /^SeaBIOS /);
  assert(witness.log.at(-1)?.startsWith("No bootable device."));
  assert(witness.log.includes("Booting from 0000:7c00"));

  assertEquals(witness.findings, FINDINGS.map((name) => name + GOOD));
  const { memory } = machine.memory.guest;
  assertEquals(memory.readUint32(0xe000_0000), LEFT_BEHIND);

  const kinds = witness.refused.map((why) => why.match(/\w+Error(?=: BA)/)?.[0]);
  assertEquals(kinds, ["BarPlacementError", "BarPlacementError", "BarPlacementError"]);
  const slots = witness.changes.map((change) => change.slots);
  const deleted = slots.flatMap((slots) => slots.deleted);
  const ram = [new MemoryRange(0, 0xa_0000), new MemoryRange(0x10_0000, RAM)];
  assertEquals(deleted.filter((range) => ram.some((part) => part.overlaps(range))), []);

  const firmware = slots.slice(0, witness.firmwareChanges);
  const deletes = firmware.reduce((sum, { deleted }) => sum + deleted.length, 0);
  const changes = firmware.reduce((sum, { made }) => sum + made.length, deletes);
  assert(changes < QEMU_CHANGES, `${changes} changes of slots`);
  assert(deletes < QEMU_DELETES, `${deletes} slots deleted`);
});

function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
  }
}
