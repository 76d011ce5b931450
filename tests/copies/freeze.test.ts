import { assert, assertEquals, assertThrows } from "@std/assert";
import { GuestMemoryManager, MappingError, MembackingError, MemoryLockedError } from "membacking";
import { mappings, openFds } from "../support/proc.ts";
import { PAGE, range } from "../support/units.ts";

const MIB = 2 ** 20;

function newGuest(options: { x86Legacy?: boolean; quiesce?: () => Disposable } = {}): GuestMemoryManager {
  return GuestMemoryManager.create({
    maxAddress: 64 * MIB,
    ram: [{ name: "low", ranges: [range(0, 8 * MIB)] }, { name: "high", ranges: [range(32 * MIB, 36 * MIB)] }],
    ...options,
  });
}

/** Words at a few places of RAM, the last of it included. */
const PLACES = [0, 0xa0000, 0xf0000, MIB, 8 * MIB - 4, 32 * MIB, 36 * MIB - 4];

function words(guest: GuestMemoryManager): number[] {
  return PLACES.map((gpa) => guest.memory.readUint32(gpa));
}

function write(guest: GuestMemoryManager, value: number): void {
  PLACES.forEach((gpa, i) => guest.memory.writeUint32(gpa, value + i));
}

const at = (value: number) => PLACES.map((_, i) => value + i);

Deno.test("a clone begins with the memory of the freeze, and neither sees what the other writes", () => {
  using guest = newGuest();
  write(guest, 100);
  using template = guest.freeze();
  write(guest, 200);
  using first = template.clone();
  assertEquals(words(first), at(100));
  write(first, 300);
  using second = template.clone();
  assertEquals([words(guest), words(first), words(second)], [at(200), at(300), at(100)]);
  assertEquals(template.ranges.map(String), ["0x0-0x800000", "0x2000000-0x2400000"]);
});

Deno.test("a clone has the visibility of its template", () => {
  using guest = newGuest({ x86Legacy: true });
  write(guest, 1);
  guest.setRamVisibility(range(0xa0000, 0xc0000), "unmapped");
  guest.setRamVisibility(range(0xf0000, 0x10_0000), "read-only");
  using template = guest.freeze();
  using clone = template.clone();
  assertEquals(clone.memory.find(0xa0000), null);
  assert(!clone.memory.isMapped(0xf0000, 4, { write: true }));
  clone.setRamVisibility(range(0xa0000, 0xc0000), "read-write");
  assertEquals(words(clone), at(1));
});

Deno.test("a clone has the layout of its template, whatever else it is asked to have", () => {
  using guest = newGuest({ x86Legacy: true });
  using template = guest.freeze();
  const asked = { x86Legacy: false, maxAddress: PAGE, ram: [], pin: true, ramPriority: 3 };
  using clone = template.clone(asked);
  assertEquals(clone.ramRanges.map(String), guest.ramRanges.map(String));
  assertEquals(clone.regions.regions()[0]?.priority, 3);
  using again = clone.freeze().clone();
  assertEquals(again.ramRanges.map(String), guest.ramRanges.map(String));
});

Deno.test("clones, template and source go in any order, and nothing stays", () => {
  const before = { fds: openFds(), maps: mappings().filter(({ file }) => file.includes("memfd:")).length };
  for (let turn = 0; turn < 6; turn++) {
    const guest = newGuest();
    write(guest, 7);
    const template = guest.freeze();
    const clone = template.clone();
    const all = [guest, template, clone];
    const order = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]][turn]!;
    for (const [i, which] of order.entries()) {
      all[which]![Symbol.dispose]();
      const left = order.slice(i + 1);
      if (left.includes(0)) assertEquals(words(guest), at(7));
      if (left.includes(2)) assertEquals(words(clone), at(7));
    }
  }
  const after = { fds: openFds(), maps: mappings().filter(({ file }) => file.includes("memfd:")).length };
  assertEquals(after, before);
});

Deno.test("thaw brings what was written since the freeze to the file, which is shared again", () => {
  using guest = newGuest();
  write(guest, 1);
  guest.freeze()[Symbol.dispose]();
  assertEquals(guest.shareableRegions(), []);
  write(guest, 50);
  guest.thaw();
  assertEquals(words(guest), at(50));
  assertEquals(guest.memory.find(0)?.kind, "shared");
  const [region] = guest.shareableRegions();
  assert(region !== undefined);
  assertEquals(words(guest), at(50));
});

Deno.test("while a template or a clone is there, memory is not thawed", () => {
  using guest = newGuest();
  const template = guest.freeze();
  const clone = template.clone();
  assertThrows(() => guest.thaw(), MembackingError, "template or a clone");
  template[Symbol.dispose]();
  assertThrows(() => guest.thaw(), MembackingError, "template or a clone");
  clone[Symbol.dispose]();
  guest.thaw();
  assertEquals(guest.memory.find(0)?.kind, "shared");
});

Deno.test("rollback goes back to the freeze as often as one likes, and says which pages changed", () => {
  using guest = newGuest();
  write(guest, 10);
  using _template = guest.freeze();
  using tracker = guest.trackDirty();
  assertEquals(guest.rollback().count, 0);
  for (let turn = 0; turn < 50; turn++) {
    write(guest, 1000 * turn);
    guest.memory.fill(2 * MIB, 3 * PAGE, turn + 1);
    tracker.take();
    const pages = guest.rollback();
    assertEquals(words(guest), at(10));
    assertEquals(guest.memory.readUint32(2 * MIB), 0);
    assertEquals(pages.count, PLACES.length + 3);
    assertEquals([...tracker.take()].map(String), [...pages].map(String));
  }
});

Deno.test("a clone is rolled back to its template, and a template can be made of a clone", () => {
  using guest = newGuest();
  write(guest, 1);
  using template = guest.freeze();
  using clone = template.clone();
  write(clone, 2);
  clone.rollback();
  assertEquals(words(clone), at(1));
  write(clone, 3);
  using again = clone.freeze();
  write(clone, 4);
  using grandchild = again.clone();
  assertEquals([words(guest), words(clone), words(grandchild)], [at(1), at(4), at(3)]);
  clone.rollback();
  assertEquals(words(clone), at(3));
});

Deno.test("a second freeze keeps both moments: over a template of the first, and over none", () => {
  for (const keepsFirst of [true, false]) {
    using guest = newGuest({ x86Legacy: true });
    write(guest, 1);
    guest.setRamVisibility(range(0xa0000, 0xc0000), "unmapped");
    using first = guest.freeze();
    using firstClone = first.clone();
    if (!keepsFirst) {
      firstClone[Symbol.dispose]();
      first[Symbol.dispose]();
    }
    guest.setRamVisibility(range(0xa0000, 0xc0000), "read-write");
    write(guest, 2);
    guest.setRamVisibility(range(0xa0000, 0xc0000), "unmapped");
    using second = guest.freeze();
    guest.setRamVisibility(range(0xa0000, 0xc0000), "read-write");
    write(guest, 3);
    using clone = second.clone();
    clone.setRamVisibility(range(0xa0000, 0xc0000), "read-write");
    assertEquals([words(guest), words(clone)], [at(3), at(2)]);
    if (keepsFirst) {
      firstClone.setRamVisibility(range(0xa0000, 0xc0000), "read-write");
      assertEquals(words(firstClone), at(1));
    }
    guest.rollback();
    assertEquals(words(guest), at(2));
  }
});

Deno.test("what could change the template is refused while it is there", () => {
  using guest = newGuest();
  using template = guest.freeze();
  const piece = guest.memory.find(0);
  assert(piece?.mappable !== null && piece?.mappable !== undefined);
  const { mappable } = piece;
  assertThrows(() => mappable.fd, MembackingError, "cannot be handed out");
  assertThrows(() => mappable.write(0, new Uint8Array(4)), MembackingError, "cannot be written");
  const other = guest.regions.newRegion({ name: "other", range: range(40 * MIB, 41 * MIB), priority: 0 });
  assertThrows(() => other.addMapping({ rangeInRegion: range(0, MIB), mappable }), MappingError);
  template[Symbol.dispose]();
});

Deno.test("memory that others may have is not frozen, and the error says who is in the way", () => {
  const cases: [string, (guest: GuestMemoryManager) => void][] = [
    ["descriptor was asked for", (guest) => void guest.shareableRegions()[0]?.fd],
    ["other handles", (guest) => void guest.memory.find(0)?.mappable?.clone()],
  ];
  for (const [why, share] of cases) {
    using guest = newGuest();
    share(guest);
    assertThrows(() => guest.freeze(), MappingError, why);
    assertEquals(guest.memory.find(0)?.kind, "shared");
  }
  using anonymous = GuestMemoryManager.create({
    maxAddress: MIB,
    ram: [{ ranges: [range(0, MIB)], backing: "private" }],
  });
  assertThrows(() => anonymous.freeze(), MappingError, "anonymous");
});

Deno.test("freeze passes under a lock, rollback does not", () => {
  using guest = newGuest();
  using lock = guest.memory.lock(range(0x1000, 0x2000), { write: true });
  lock.bytes[0] = 1;
  using template = guest.freeze();
  lock.bytes[0] = 2;
  using clone = template.clone();
  assertEquals([guest.memory.readUint8(0x1000), clone.memory.readUint8(0x1000)], [2, 1]);
  assertThrows(() => guest.rollback(), MemoryLockedError);
  lock[Symbol.dispose]();
  guest.rollback();
  assertEquals(guest.memory.readUint8(0x1000), 1);
});

Deno.test("vCPUs are held for freeze, thaw and rollback, once each, and a hook that throws leaves all as it was", () => {
  let held = 0;
  let fails = false;
  using guest = newGuest({
    quiesce: () => {
      if (fails) throw new Error("no");
      held++;
      return { [Symbol.dispose]() {} };
    },
  });
  write(guest, 1);
  fails = true;
  assertThrows(() => guest.freeze(), Error, "no");
  assertEquals(guest.memory.find(0)?.kind, "shared");
  fails = false;
  using template = guest.freeze();
  assertEquals(held, 1);
  write(guest, 2);
  fails = true;
  assertThrows(() => guest.rollback(), Error, "no");
  assertEquals(words(guest), at(2));
  fails = false;
  guest.rollback();
  assertEquals([held, words(guest)], [2, at(1)]);
  template[Symbol.dispose]();
  guest.thaw();
  assertEquals(held, 3);
});

Deno.test("there is nothing to roll back to without a freeze", () => {
  using guest = newGuest();
  assertThrows(() => guest.rollback(), MembackingError, "nothing to roll back to");
});

Deno.test("what a frozen guest discarded is zeros in its next template, its snapshot and after thaw, and is back after rollback", async () => {
  const folder = Deno.makeTempDirSync();
  try {
    for (const how of ["freeze", "save", "thaw", "rollback"] as const) {
      using guest = newGuest();
      guest.memory.fill(MIB, MIB, 7);
      guest.freeze()[Symbol.dispose]();
      guest.discard(range(MIB, MIB + MIB / 2));
      guest.discard(range(2 * MIB - PAGE, 2 * MIB));
      guest.memory.writeUint8(MIB, 1);
      const now = (of: GuestMemoryManager) =>
        [MIB, MIB + PAGE, MIB + MIB / 2, 2 * MIB - 1].map((gpa) => of.memory.readUint8(gpa));
      assertEquals(now(guest), [1, 0, 7, 0]);
      if (how === "rollback") {
        guest.rollback();
        assertEquals(now(guest), [7, 7, 7, 7]);
      } else if (how === "thaw") {
        guest.thaw();
        assertEquals(now(guest), [1, 0, 7, 0]);
        assertEquals([guest.memory.find(MIB)?.kind, guest.memory.find(MIB)?.range.end], ["shared", 8 * MIB]);
      } else if (how === "freeze") {
        using template = guest.freeze();
        using clone = template.clone();
        assertEquals([now(guest), now(clone)], [[1, 0, 7, 0], [1, 0, 7, 0]]);
      } else {
        using snapshot = await guest.save(`${folder}/snapshot`);
        using restored = GuestMemoryManager.restore(snapshot);
        assertEquals(now(restored), [1, 0, 7, 0]);
      }
    }
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("a freeze that fails when it has written to the file leaves nothing to roll back to, and says so", async () => {
  const { stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", new URL("./spoiled_child.ts", import.meta.url).pathname],
    env: { NO_COLOR: "1" },
  }).output();
  assertEquals([new TextDecoder().decode(stdout).split("\n"), new TextDecoder().decode(stderr)], [[
    "undone",
    "MembackingError: A freeze or thaw that failed has written over what was to be rolled back to, freeze again 9",
    "done 9",
    "",
  ], ""]);
});

Deno.test("a frozen guest gives all back though somebody tried to put something in place of its regions", () => {
  const before = openFds();
  {
    using guest = newGuest();
    using other = newGuest();
    const { regions } = guest;
    using template = guest.freeze();
    for (const instead of [template, other.regions]) assert(!Reflect.set(guest, "regions", instead));
    assert(guest.regions === regions);
  }
  assertEquals(openFds(), before);
});
