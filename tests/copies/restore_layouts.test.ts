import { assertEquals } from "@std/assert";
import { GuestMemoryManager, type RamBacking, Snapshot } from "membacking";
import { PAGE, range } from "../support/units.ts";

const MIB = 0x10_0000;

/** Layouts whose ranges do not follow each other as GPAs modulo 2 MiB do. */
const LAYOUTS: Readonly<Record<string, readonly RamBacking[]>> = {
  "a hole below 1 MiB": [{ ranges: [range(0, 0xa_0000), range(MIB, 4 * MIB)] }],
  "a hole below 4 GiB": [{
    ranges: [range(0, 3 * MIB), range(2 ** 32, 2 ** 32 + MIB), range(2 ** 32 + 3 * MIB, 2 ** 32 + 4 * MIB)],
  }],
  "two backings with holes": [
    { name: "node 0", ranges: [range(0, 0xa_0000), range(MIB, 3 * MIB)] },
    { name: "node 1", ranges: [range(5 * MIB, 6 * MIB), range(8 * MIB, 9 * MIB)] },
  ],
};

for (const [name, ram] of Object.entries(LAYOUTS)) {
  for (const copyOnWrite of [true, false]) {
    Deno.test(`a snapshot of RAM with ${name} has every page where it was (copyOnWrite ${copyOnWrite})`, async () => {
      using guest = GuestMemoryManager.create({ maxAddress: 2 ** 33, ram });
      const pages = guest.ramRanges.flatMap(({ start, length }) =>
        Array.from({ length: length / PAGE }, (_, i) => start + i * PAGE)
      );
      for (const gpa of pages) guest.memory.writeBigUint64(gpa, BigInt(gpa + 1));
      const folder = Deno.makeTempDirSync();
      try {
        using _saved = await guest.save(`${folder}/snapshot`);
        using snapshot = await Snapshot.open(`${folder}/snapshot`, { verify: true });
        using restored = GuestMemoryManager.restore(snapshot, { copyOnWrite });
        assertEquals(restored.ramRanges.map(String), guest.ramRanges.map(String));
        assertEquals(pages.filter((gpa) => restored.memory.readBigUint64(gpa) !== BigInt(gpa + 1)), []);
      } finally {
        Deno.removeSync(folder, { recursive: true });
      }
    });
  }
}
