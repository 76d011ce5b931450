// A batch may be interrupted in what becomes of it: in a file of its own, where nothing of that has been compiled yet.

import { assertEquals, assertGreater, assertStrictEquals } from "@std/assert";
import { Mappable, RegionManager, VaMapper } from "membacking";
import { RecordingPartition } from "membacking/testing";
import { openFds } from "../support/proc.ts";
import { throwsNearEnd } from "../support/stack.ts";
import { PAGE, range } from "../support/units.ts";

Deno.test("a batch that the end of the stack interrupts leaves no descriptor", () => {
  let interrupted = 0;
  const leaks: number[] = [];
  // First often enough without an end that everything is compiled but what nobody has needed yet.
  const rooms = [...Array<number>(700).fill(Infinity), ...Array.from({ length: 740 }, (_, i) => 3000 - 4 * i)];
  for (const words of rooms) {
    const before = openFds();
    {
      using va = VaMapper.reserve(64 * PAGE);
      using file = Mappable.memfd("file", 16 * PAGE);
      using manager = new RegionManager(va);
      manager.addPartition(new RecordingPartition());
      const region = manager.newRegion({ name: "region", range: range(0, 16 * PAGE), priority: 1 });
      region.addMapping({ rangeInRegion: range(0, 4 * PAGE), mappable: file });
      region.map();
      const batch = () =>
        manager.batch(() => {
          region.addMapping({ rangeInRegion: range(8 * PAGE, 9 * PAGE), mappable: file });
          region.removeMappings(range(0, PAGE));
        });
      if (words === Infinity) batch();
      else if (throwsNearEnd(words, batch)) interrupted++;
      // It has happened or it has not, and goes on from there.
      const pieces = [...manager.memory.pieces(range(0, 16 * PAGE))].length;
      assertGreater(pieces, 0);
      region.unmap();
      assertStrictEquals([...manager.memory.pieces(range(0, 16 * PAGE))].length, 0);
    }
    if (openFds() !== before) leaks.push(words);
  }
  assertGreater(interrupted, 20);
  assertEquals(leaks, []);
});
