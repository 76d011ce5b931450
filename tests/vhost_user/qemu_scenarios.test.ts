/**
 * What QEMU's own test of its vhost-user front end (tests/qtest/vhost-user-test.c) asserts, of this one.
 *
 * @module
 */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { GuestMemoryManager, Mappable, MemoryRange } from "membacking";
import { VhostUserError, VhostUserFrontend, VhostUserMemory } from "membacking/vhost-user";
import { Rig, RING } from "./rig.ts";
import { EVERYTHING, ScriptedBackend, SOME_FEATURE } from "./scripted_backend.ts";

const LENGTH = 0x100_0000;
const PATTERN = crypto.getRandomValues(new Uint8Array(0x4000));

const BACKINGS: Readonly<Record<string, () => Mappable>> = {
  memfile: () => file(Deno.makeTempFileSync()),
  memfd: () => Mappable.memfd("ram", LENGTH),
  shm: () => file(Deno.makeTempFileSync({ dir: "/dev/shm" })),
};

function file(path: string): Mappable {
  Deno.truncateSync(path, LENGTH);
  const mappable = Mappable.open(path, { write: true });
  Deno.removeSync(path);
  return mappable;
}

for (const [kind, open] of Object.entries(BACKINGS)) {
  Deno.test(`read-guest-mem/${kind}: the back end reads what the guest has, wherever it lies`, async () => {
    using backing = open();
    using guest = GuestMemoryManager.create({
      maxAddress: 0x1000_0000,
      ram: [{ ranges: [new MemoryRange(0, LENGTH)], backing }],
    });
    await using backend = await ScriptedBackend.start();
    using frontend = await backend.connect();
    using memory = new VhostUserMemory(frontend);
    using _attached = guest.regions.addDmaTarget(memory);
    for (const gpa of [0, 0x7_f000, LENGTH - PATTERN.length]) {
      guest.memory.write(gpa, PATTERN);
      assertEquals([...await backend.read(gpa, PATTERN.length)], [...PATTERN]);
    }
  });
}

Deno.test("migrate: pages that the back end has marked are sent again, and another back end goes on from there", async () => {
  await using source = await Rig.make(EVERYTHING, { start: true });
  await using destination = await Rig.make();
  source.guest.memory.write(0x20_0000, PATTERN);
  source.memory.takeDirty(() => {});
  // All of it once, while the back end writes; then what it has marked, until nothing is.
  const send = (start: number, end: number) =>
    destination.guest.memory.write(start, source.guest.memory.read(start, end - start));
  send(0, LENGTH);
  for (const at of [0x20_1000, 0x20_3ffe, 0x50_0000]) {
    await source.backend.write(at, PATTERN.subarray(0, 4), { log: true });
  }
  let rounds = 0;
  for (let sent = 1; sent > 0; rounds++) {
    sent = 0;
    source.memory.takeDirty((start, end) => {
      send(start, end);
      sent += end - start;
    });
  }
  assertEquals(rounds, 2);
  const base = await source.frontend.stopVring(0);
  source.memory.stopLogging();
  assertEquals((await source.backend.state()).features & 1n << 26n, 0n);

  await destination.frontend.setFeatures(SOME_FEATURE);
  await destination.frontend.startVring(0, { ...RING, base });
  assertEquals((await destination.backend.state()).vrings[0]?.SET_VRING_BASE, base);
  assertEquals([...await destination.backend.read(0, LENGTH)].length, LENGTH);
  assertEquals(await destination.backend.read(0x20_0000, 0x4000), await source.backend.read(0x20_0000, 0x4000));
  assertEquals([...await destination.backend.read(0x50_0000, 4)], [...PATTERN.subarray(0, 4)]);
});

Deno.test("reconnect: the back end goes and comes, and has memory and queue again", async () => {
  const path = `${Deno.makeTempDirSync()}/socket`;
  await using backend = await ScriptedBackend.start();
  await backend.listen(path, EVERYTHING);
  const frontend = await VhostUserFrontend.connect(path);
  await using rig = new Rig(backend, frontend, {});
  await frontend.setFeatures(SOME_FEATURE);
  await rig.startVring();
  for (let round = 0; round < 3; round++) {
    await backend.die();
    await frontend.reconnect();
    rig.guest.memory.writeUint32(0x5000, round);
    assertEquals((await backend.read(0x5000, 1))[0], round);
    assertEquals((await backend.state()).vrings[0]?.running, 1);
  }
});

Deno.test("connect-fail: a back end that closes in the handshake is tried again, and again", async () => {
  const path = `${Deno.makeTempDirSync()}/socket`;
  await using backend = await ScriptedBackend.start();
  const failing = (["GET_FEATURES", "GET_PROTOCOL_FEATURES", "SET_OWNER"] as const).map((on) => ({
    ...EVERYTHING,
    faults: [{ on, act: "die" as const }],
  }));
  await backend.listen(path, ...failing, EVERYTHING);
  for (const _ of failing) {
    assertEquals((await assertRejects(() => VhostUserFrontend.connect(path), VhostUserError)).kind, "disconnected");
  }
  using frontend = await VhostUserFrontend.connect(path);
  assertEquals(frontend.state, "connected");
});

Deno.test("flags-mismatch: a back end that comes back with other features is not taken", async () => {
  const path = `${Deno.makeTempDirSync()}/socket`;
  await using backend = await ScriptedBackend.start();
  await backend.listen(path, EVERYTHING, { ...EVERYTHING, features: EVERYTHING.features & ~SOME_FEATURE }, EVERYTHING);
  const frontend = await VhostUserFrontend.connect(path);
  await using rig = new Rig(backend, frontend, {});
  await frontend.setFeatures(SOME_FEATURE);
  await rig.startVring();
  await backend.die();
  assertEquals((await assertRejects(() => frontend.reconnect(), VhostUserError)).kind, "unsupported");
  await frontend.reconnect();
  assertEquals((await backend.state()).vrings[0]?.running, 1);
});

Deno.test("multiqueue: as many queues as the back end has, each with its own ring", async () => {
  await using rig = await Rig.make({ ...EVERYTHING, queues: 8 });
  await rig.frontend.setFeatures(SOME_FEATURE);
  for (let index = 0; index < 8; index++) {
    const at = 0x10_0000 * (index + 1);
    await rig.frontend.startVring(index, { size: 256, descriptor: at, available: at + 0x1000, used: at + 0x2000 });
  }
  const { vrings } = await rig.backend.state();
  const base = rig.memory.table[0]!.userAddress;
  const found = Array.from({ length: 8 }, (_, index) => (vrings[index]?.descriptor ?? 0) - base);
  assertEquals(found, Array.from({ length: 8 }, (_, index) => 0x10_0000 * (index + 1)));
  assert(Object.values(vrings).every(({ running }) => running === 1));
  await assertRejects(() => rig.frontend.startVring(8, RING), RangeError);
});
