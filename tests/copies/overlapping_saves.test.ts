import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { GuestMemoryManager, MembackingError, OsError, type Quiesce } from "membacking";
import { openFds } from "../support/proc.ts";
import { range } from "../support/units.ts";

const MIB = 2 ** 20;

/** A temporary directory, until disposed. */
function folder() {
  const path = Deno.makeTempDirSync();
  return { path, [Symbol.dispose]: () => Deno.removeSync(path, { recursive: true }) };
}

function newGuest(options: { quiesce?: Quiesce } = {}): GuestMemoryManager {
  return GuestMemoryManager.create({
    maxAddress: 64 * MIB,
    ram: [{ ranges: [range(0, 40 * MIB)], transparentHugepages: false }],
    ...options,
  });
}

const kind = (guest: GuestMemoryManager) => guest.memory.find(0)?.kind;

Deno.test("saves that overlap are each of their own moment, and the last one makes memory shared again", async () => {
  using disk = folder();
  using guest = newGuest();
  guest.memory.fill(0, 40 * MIB, 1);
  const first = guest.save(`${disk.path}/first`, { live: true });
  guest.memory.fill(0, 4 * MIB, 2);
  const second = guest.save(`${disk.path}/second`, { live: true });
  guest.memory.fill(0, 4 * MIB, 3);
  for (const [which, saved] of [await first, await second].entries()) {
    using snapshot = saved;
    using restored = GuestMemoryManager.restore(snapshot);
    assertEquals([0, 4 * MIB - 1, 4 * MIB].map((gpa) => restored.memory.readUint8(gpa)), [which + 1, which + 1, 1]);
  }
  assertEquals([kind(guest), guest.memory.readUint8(0)], ["shared", 3]);
});

Deno.test("while memory is saved there is nothing to roll back to, and thaw says what is going on", async () => {
  using disk = folder();
  using guest = newGuest();
  guest.memory.fill(0, 40 * MIB, 1);
  const saving = guest.save(`${disk.path}/a`, { live: true });
  guest.memory.fill(0, 4 * MIB, 2);
  assertThrows(() => guest.rollback(), MembackingError, "nothing to roll back to");
  assertThrows(() => guest.thaw(), MembackingError, "being saved");
  (await saving)[Symbol.dispose]();
  assertEquals([kind(guest), guest.memory.readUint8(0)], ["shared", 2]);
});

Deno.test("a guest that is frozen while it is saved stays frozen, and goes back to its own moment", async () => {
  using disk = folder();
  using guest = newGuest();
  guest.memory.fill(0, 40 * MIB, 1);
  const saving = guest.save(`${disk.path}/a`, { live: true });
  guest.memory.fill(0, 4 * MIB, 2);
  using template = guest.freeze();
  guest.memory.fill(0, 4 * MIB, 3);
  using snapshot = await saving;
  using restored = GuestMemoryManager.restore(snapshot);
  using clone = template.clone();
  assertEquals([restored, clone, guest].map(({ memory }) => memory.readUint8(0)), [1, 2, 3]);
  guest.rollback();
  assertEquals([kind(guest), guest.memory.readUint8(0)], ["copy-on-write", 2]);
});

Deno.test("a save that is aborted, whose listener throws or whose guest goes meanwhile leaves nothing frozen, open or on the disk", async () => {
  const cases: [string, (guest: GuestMemoryManager, controller: AbortController) => void][] = [
    ["asked to end", (_, controller) => controller.abort(new Error("asked to end"))],
    ["the listener's", () => {
      throw new Error("the listener's");
    }],
  ];
  for (const live of [true, false]) {
    for (const [message, act] of cases) {
      using disk = folder();
      let held = 0;
      using guest = newGuest({
        quiesce: () => {
          held++;
          return { [Symbol.dispose]: () => void held-- };
        },
      });
      guest.memory.fill(0, 40 * MIB, 1);
      const fds = openFds();
      const controller = new AbortController();
      let told = 0;
      const onProgress = () => {
        if (++told === 2) act(guest, controller);
      };
      const { signal } = controller;
      await assertRejects(() => guest.save(`${disk.path}/a`, { live, signal, onProgress }), Error, message);
      assertEquals([kind(guest), held, told, [...Deno.readDirSync(disk.path)].length], ["shared", 0, 2, 0]);
      assertEquals(openFds(), fds);
      assertEquals(guest.memory.readUint8(0), 1);
    }
  }
  using disk = folder();
  const fds = openFds();
  const guest = newGuest();
  guest.memory.fill(0, 40 * MIB, 1);
  const saving = guest.save(`${disk.path}/a`, { live: true, onProgress: () => guest[Symbol.dispose]() });
  {
    using snapshot = await saving;
    await snapshot.verify();
    assertEquals(snapshot.storedBytes, 40 * MIB);
  }
  assertEquals(openFds(), fds);
});

Deno.test("a hook that fails for a save leaves memory as it was; one that fails for its thaw leaves a snapshot, and says so", async () => {
  using disk = folder();
  let calls = 0;
  let failing = 1;
  const errors: string[] = [];
  const said = (message: string) => void errors.push(message);
  const silent = () => {};
  using guest = GuestMemoryManager.create({
    maxAddress: 8 * MIB,
    ram: [{ ranges: [range(0, 8 * MIB)] }],
    logger: { debug: silent, info: silent, warn: silent, error: said },
    quiesce: () => {
      if (++calls === failing) throw new Error("not now");
      return { [Symbol.dispose]() {} };
    },
  });
  guest.memory.fill(0, MIB, 1);
  await assertRejects(() => guest.save(`${disk.path}/a`, { live: true }), Error, "not now");
  assertEquals([kind(guest), [...Deno.readDirSync(disk.path)].length], ["shared", 0]);
  failing = calls + 2;
  using snapshot = await guest.save(`${disk.path}/a`, { live: true });
  await snapshot.verify();
  assertEquals([kind(guest), errors.length], ["copy-on-write", 1]);
  assert(errors[0]!.includes("copy-on-write"), errors[0]);
  guest.thaw();
  assertEquals([kind(guest), guest.memory.readUint8(0)], ["shared", 1]);
});

Deno.test("what a quiesce hook has to return is checked for a save as for requests", async () => {
  using disk = folder();
  using guest = newGuest({ quiesce: (() => undefined) as unknown as Quiesce });
  await assertRejects(() => guest.save(`${disk.path}/a`), TypeError, "Disposable");
  assertEquals([kind(guest), [...Deno.readDirSync(disk.path)].length], ["shared", 0]);
});

Deno.test("a difference is saved though its base was removed or disposed meanwhile", async () => {
  using disk = folder();
  using guest = newGuest();
  guest.memory.fill(0, 20 * MIB, 1);
  const fds = openFds();
  {
    const base = await guest.save(`${disk.path}/base`);
    guest.memory.fill(0, 4096, 2);
    Deno.removeSync(`${disk.path}/base`, { recursive: true });
    const saving = guest.save(`${disk.path}/a`, { base, live: true });
    base[Symbol.dispose]();
    using difference = await saving;
    using restored = GuestMemoryManager.restore(difference);
    assertEquals([0, 4096].map((gpa) => restored.memory.readUint8(gpa)), [2, 1]);
    assertEquals(difference.storedBytes, 4096);
  }
  assertEquals(openFds(), fds);
});

Deno.test("saving in a batch is refused, and a directory that cannot be made is an error of its own", async () => {
  using disk = folder();
  using guest = newGuest();
  let saving: Promise<unknown> | undefined;
  guest.regions.batch(() => {
    saving = guest.save(`${disk.path}/a`);
    saving.catch(() => {});
  });
  await assertRejects(() => saving!, TypeError, "batch");
  await assertRejects(() => guest.save(`${disk.path}/none/a`), OsError, "ENOENT");
  assertEquals([kind(guest), [...Deno.readDirSync(disk.path)].length], ["shared", 0]);
});
