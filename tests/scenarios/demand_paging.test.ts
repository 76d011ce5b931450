/**
 * What the kernel's demand_paging_test asserts, as far as it applies: there a handler brings pages in, here the file does
 * that is under the memory.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { Mappable, MemoryRange } from "membacking";
import { kvmTest } from "../support/require.ts";
import { PAGE } from "../support/units.ts";
import { ARGUMENT, rounds, Scenario, UNDISTURBED } from "./rig.ts";

const MIB = 0x10_0000;
const AREA = 0x4000_0000;
const LENGTH = 32 * MIB;

for (const copyOnWrite of [false, true]) {
  for (const split of [true, false]) {
    const how = `${copyOnWrite ? "copy-on-write" : "shared"}, ${split ? "parts of their own" : "all of it"}`;
    kvmTest(`vCPUs that touch memory for the first time find in each page what its file has (${how})`, async () => {
      const vcpus = 2;
      await using scenario = new Scenario({ ram: 4 * MIB, vcpus, ranges: [{ start: AREA, end: AREA + LENGTH }] });
      using file = Mappable.memfd("pages", LENGTH);
      for (let at = 0; at < LENGTH; at += PAGE) {
        file.write(at, new Uint8Array(new BigUint64Array([BigInt(at + 1)]).buffer));
      }
      const region = scenario.memory.regions.newRegion({
        name: "area",
        range: MemoryRange.of(AREA, LENGTH),
        priority: 1,
      });
      region.addMapping({ rangeInRegion: MemoryRange.of(0, LENGTH), mappable: file, copyOnWrite });
      region.map();
      const share = LENGTH / vcpus;
      // Each page begins with its offset plus 1; the sum of what was found goes to a word.
      const programs = Array.from(
        { length: vcpus },
        (_, i) =>
          rounds(
            i,
            (code) =>
              code.set("rbx", AREA + (split ? i * share : 0)).set("rdx", AREA + (split ? (i + 1) * share : LENGTH))
                .set("rcx", 0)
                .label("page").load("rax", "rbx", 8).addRegister("rcx", "rax").add("rbx", PAGE)
                .compareRegister("rbx", "rdx").jumpIf("below", "page")
                .store("rsi", "rcx", 8, ARGUMENT),
          ),
      );
      await scenario.start(programs);
      await scenario.aRound();
      const reports = await scenario.stop();
      assertEquals(reports.map(({ exits }) => exits), [UNDISTURBED, UNDISTURBED]);
      const sum = (start: number, end: number) => {
        let total = 0n;
        for (let at = start; at < end; at += PAGE) total += BigInt(at + 1);
        return total;
      };
      assertEquals(
        reports.map((_, i) => scenario.result(i)),
        reports.map((_, i) => split ? sum(i * share, (i + 1) * share) : sum(0, LENGTH)),
      );
    });
  }
}
