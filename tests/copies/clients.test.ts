import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { GuestMemoryManager, MappingError, MemoryLockedError } from "membacking";
import { Remote } from "../clients/remote.ts";
import { RemoteProcess } from "../clients/remote_process.ts";
import { range } from "../support/units.ts";

const MIB = 2 ** 20;

function newGuest(): GuestMemoryManager {
  return GuestMemoryManager.create({ maxAddress: 8 * MIB, ram: [{ ranges: [range(0, 4 * MIB)] }] });
}

const kind = (guest: GuestMemoryManager) => guest.memory.find(0)?.kind;

Deno.test("a process client has the files of guest memory by fact: before it a guest can be frozen, afterwards not", async () => {
  using guest = newGuest();
  guest.memory.writeUint32(0, 1);
  guest.freeze()[Symbol.dispose]();
  {
    await using remote = await RemoteProcess.start(guest.regions);
    await assertRejects(() => remote.run("return client.memory.readUint32(0);"), Error, "");
    guest.memory.writeUint32(0, 2);
    // It has been handed nothing yet, so that another freeze is no matter.
    guest.freeze()[Symbol.dispose]();
    guest.thaw();
    assertEquals(await remote.run("return client.memory.readUint32(0);"), 2);
    assertThrows(() => guest.freeze(), MappingError, "others may have it");
    assertEquals([kind(guest), guest.memory.readUint32(0)], ["shared", 2]);
  }
  // What a process had it may have handed on.
  assertThrows(() => guest.freeze(), MappingError, "others may have it");
});

Deno.test("a client in another thread sees the guest's own memory through freeze, rollback and thaw", async () => {
  using guest = newGuest();
  await using remote = await Remote.start(guest.regions);
  using tracker = guest.trackDirty();
  const word = () => remote.run("return client.memory.readUint32(0x1000);");
  for (let i = 1; i <= 5; i++) {
    await remote.run("client.memory.writeUint32(0x1000, values[0]);".replace("values[0]", `${10 * i}`));
    using template = guest.freeze();
    tracker.take();
    await remote.run(`client.memory.writeUint32(0x1000, ${10 * i + 1});`);
    assertEquals([await word(), guest.memory.readUint32(0x1000)], [10 * i + 1, 10 * i + 1]);
    assertEquals(tracker.take().has(0x1000), true);
    using clone = template.clone();
    assertEquals(clone.memory.readUint32(0x1000), 10 * i);
    guest.rollback();
    assertEquals(await word(), 10 * i);
    await remote.run(`client.memory.writeUint32(0x1000, ${10 * i + 2});`);
    clone[Symbol.dispose]();
    template[Symbol.dispose]();
    if (i % 2 === 0) guest.thaw();
    assertEquals([await word(), guest.memory.readUint32(0x1000)], [10 * i + 2, 10 * i + 2]);
  }
});

Deno.test("a save whose thaw another thread's lock is in the way of is whole, and memory is shared again once it is released", async () => {
  const folder = Deno.makeTempDirSync();
  try {
    using guest = newGuest();
    guest.memory.fill(0, MIB, 1);
    await using remote = await Remote.start(guest.regions);
    await remote.run(`
      const { MemoryRange } = await import("membacking");
      kept.lock = client.memory.lock(new MemoryRange(0, 0x1000), { write: true });
      kept.lock.bytes[0] = 5;
    `);
    using snapshot = await guest.save(`${folder}/a`, { live: true });
    await snapshot.verify();
    assertEquals(kind(guest), "copy-on-write");
    assertThrows(() => guest.thaw(), MemoryLockedError);
    await remote.run("kept.lock.bytes[0] = 6; kept.lock[Symbol.dispose]();");
    const end = performance.now() + 10_000;
    while (kind(guest) !== "shared") {
      if (performance.now() > end) throw new Error("It was not thawed after the release");
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    assertEquals([guest.memory.readUint8(0), guest.memory.readUint8(1)], [6, 1]);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});
