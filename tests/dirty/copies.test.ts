// Copies of memory and written pages: freezing and thawing change nothing that a guest sees, going back does.

import { assertEquals } from "@std/assert";
import { GuestMemoryManager } from "membacking";
import { RecordingPartition } from "membacking/testing";
import { pages, taken, text } from "./rig.ts";
import { PAGE } from "../support/units.ts";

Deno.test("DirtyTracker: freezing and thawing count as nothing, going back as the pages that it changed", () => {
  const hold = { [Symbol.dispose]() {} };
  using guest = GuestMemoryManager.create({
    maxAddress: 64 * PAGE,
    ram: [{ ranges: [pages(0, 64)] }],
    quiesce: () => hold,
  });
  const vm = new RecordingPartition({ dirtyLog: true });
  using _attached = guest.attachPartition(vm);
  using tracker = guest.trackDirty();
  guest.memory.writeUint8(3 * PAGE, 1);
  {
    using _template = guest.freeze();
    assertEquals(taken(tracker), "3");
    guest.memory.writeUint8(5 * PAGE, 1);
    vm.write(pages(7));
    assertEquals(taken(tracker), "5 7");
    assertEquals(text(guest.rollback()), "5");
    assertEquals(taken(tracker), "5");
    guest.memory.writeUint8(9 * PAGE, 1);
  }
  guest.thaw();
  assertEquals(taken(tracker), "9");
  assertEquals(taken(tracker), "");
  vm.write(pages(1));
  assertEquals(taken(tracker), "1");
  guest.discard(pages(20, 24));
  assertEquals(taken(tracker), "20-23");
});
