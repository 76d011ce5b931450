import { assert, assertEquals, assertRejects } from "@std/assert";
import { OsError } from "membacking";
import { ProtocolFeature, VhostUserError, VhostUserFrontend } from "membacking/vhost-user";
import { ADDED_AT, descriptors, descriptorsAre, Rig, RING } from "./rig.ts";
import type { Script } from "./script.ts";
import { EVERYTHING, ScriptedBackend, SOME_FEATURE, without } from "./scripted_backend.ts";

/** A rig whose back end listens at a path, with one script for each connection. */
async function listening(...scripts: readonly Script[]): Promise<Rig> {
  const path = `${Deno.makeTempDirSync()}/socket`;
  const backend = await ScriptedBackend.start();
  await backend.listen(path, ...scripts);
  const frontend = await VhostUserFrontend.connect(path);
  const rig = new Rig(backend, frontend, {});
  await frontend.setFeatures(SOME_FEATURE);
  return rig;
}

/** The index of the used ring, as the back end would write it. */
function use(rig: Rig, index: number): void {
  rig.guest.memory.writeUint16(RING.used + 2, index);
}

Deno.test("a successor gets the table as it is now, the features, the vrings where they were, and a kick", async () => {
  for (
    const script of [EVERYTHING, without(ProtocolFeature.CONFIGURE_MEM_SLOTS), {
      features: SOME_FEATURE,
      protocolFeatures: 0n,
    }]
  ) {
    await using rig = await listening(script);
    await rig.startVring();
    using a = rig.region();
    a.map();
    use(rig, 41);
    await rig.backend.die();
    using b = rig.region({ start: 2 * ADDED_AT });
    b.map();
    a.unmap();
    assertEquals(rig.frontend.vrings, [{ index: 0, state: "lost" }]);
    rig.kick.take();
    await rig.frontend.reconnect();
    assertEquals(await rig.held(), ["0x0-0x1000000", "0x20000000-0x20100000"]);
    assertEquals(await rig.held(), rig.told);
    const { features, vrings } = await rig.backend.state();
    assertEquals(features & SOME_FEATURE, SOME_FEATURE);
    assertEquals([vrings[0]?.SET_VRING_BASE, vrings[0]?.running], [41, 1]);
    assertEquals([rig.kick.take(), rig.call.take()], [1, 1]);
    assertEquals([rig.frontend.state, rig.frontend.vrings], ["connected", [{ index: 0, state: "running" }]]);
    b.unmap();
    assertEquals(await rig.held(), ["0x0-0x1000000"]);
  }
});

Deno.test("a successor is handed what its predecessor was working on", async () => {
  await using rig = await listening(EVERYTHING);
  await rig.frontend.trackInflight({ queues: 1, queueSize: 8 });
  assertEquals((await rig.backend.state()).inflight, 77);
  await rig.startVring();
  await rig.backend.die();
  await rig.frontend.reconnect();
  const { log, inflight } = await rig.backend.state();
  assertEquals([inflight, log.includes("SET_INFLIGHT_FD")], [77, true]);
  assert(log.indexOf("SET_INFLIGHT_FD") < log.indexOf("SET_VRING_KICK"));
  assertEquals(log.includes("GET_INFLIGHT_FD"), false);
});

Deno.test("a successor logs on, into the same log", async () => {
  await using rig = await listening(EVERYTHING);
  await rig.startVring();
  rig.memory.takeDirty(() => {});
  await rig.backend.write(0x5000, new Uint8Array(1), { log: true });
  await rig.backend.die();
  await rig.frontend.reconnect();
  const runs: [number, number][] = [];
  rig.memory.takeDirty((start, end) => runs.push([start, end]));
  assert(runs.some(([start, end]) => start <= 0x5000 && 0x6000 <= end));
  assertEquals((await rig.backend.state()).vrings[0]?.flags, 1);
  await rig.backend.write(0x9000, new Uint8Array(1), { log: true });
  runs.length = 0;
  rig.memory.takeDirty((start, end) => runs.push([start, end]));
  assertEquals(runs.filter(([start]) => start === 0x9000), [[0x9000, 0xa000]]);
});

Deno.test("a successor that lacks something in use is refused, and another may come", async () => {
  const lacking: Script[] = [
    { ...EVERYTHING, features: EVERYTHING.features & ~SOME_FEATURE },
    without(ProtocolFeature.CONFIG),
    { ...EVERYTHING, queues: 1 },
  ];
  await using rig = await listening(EVERYTHING, ...lacking, EVERYTHING);
  await rig.startVring(1);
  await rig.backend.die();
  for (const _ of lacking) {
    const error = await assertRejects(() => rig.frontend.reconnect(), VhostUserError);
    assertEquals([error.kind, rig.frontend.state], ["unsupported", "disconnected"]);
  }
  await rig.frontend.reconnect();
  assertEquals(await rig.held(), rig.told);
});

Deno.test("a successor that dies in the middle of it, or refuses, may be followed by another", async () => {
  const ons = ["GET_FEATURES", "SET_FEATURES", "ADD_MEM_REG", "SET_VRING_ADDR", "SET_VRING_ENABLE"] as const;
  const dying = ons.map((on): Script => ({ ...EVERYTHING, faults: [{ on, act: "die" }] }));
  const refusing = ons.slice(1).map((on): Script => ({ ...EVERYTHING, faults: [{ on, act: "refuse" }] }));
  const before = descriptors();
  {
    await using rig = await listening(EVERYTHING, ...dying, ...refusing, EVERYTHING);
    await rig.startVring();
    await rig.backend.die();
    for (const _ of [...dying, ...refusing]) {
      await assertRejects(() => rig.frontend.reconnect());
      for (let i = 0; rig.frontend.state !== "disconnected" && i < 1000; i++) {
        await new Promise((done) => setTimeout(done, 1));
      }
      using region = rig.region();
      region.map();
      assertEquals(rig.guest.memory.readUint8(ADDED_AT), 0);
    }
    await rig.frontend.reconnect();
    assertEquals(await rig.held(), rig.told);
    assertEquals(rig.frontend.vrings, [{ index: 0, state: "running" }]);
  }
  await descriptorsAre(before);
});

Deno.test("requests made while a successor introduces itself are in its table", async () => {
  await using rig = await listening(EVERYTHING);
  await rig.backend.die();
  assertEquals(rig.frontend.state, "disconnected");
  const reconnecting = rig.frontend.reconnect();
  assertEquals((await assertRejects(() => rig.frontend.reconnect(), VhostUserError)).kind, "refused");
  using early = rig.region();
  early.map();
  await Promise.resolve();
  using late = rig.region({ start: 2 * ADDED_AT });
  late.map();
  await reconnecting;
  assertEquals(await rig.held(), rig.told);
  assertEquals(rig.told.length, 3);
});

Deno.test("there is no reconnecting to nobody, to somebody who is there, or without a path", async () => {
  await using rig = await listening(EVERYTHING);
  assertEquals((await assertRejects(() => rig.frontend.reconnect(), VhostUserError)).kind, "refused");
  await using other = await Rig.make();
  await other.backend.die();
  assertEquals((await assertRejects(() => other.frontend.reconnect(), VhostUserError)).kind, "refused");
  await rig.backend[Symbol.asyncDispose]();
  for (let i = 0; rig.frontend.state === "connected" && i < 1000; i++) await new Promise((done) => setTimeout(done, 1));
  await assertRejects(() => rig.frontend.reconnect(), OsError);
  rig.frontend[Symbol.dispose]();
  assertEquals((await assertRejects(() => rig.frontend.reconnect(), VhostUserError)).kind, "refused");
});

Deno.test("where a packed vring was left cannot be told", async () => {
  const packed = { ...EVERYTHING, features: EVERYTHING.features | 1n << 34n };
  await using rig = await listening(packed);
  await rig.frontend.setFeatures(SOME_FEATURE | 1n << 34n);
  await rig.startVring();
  await rig.backend.die();
  assertEquals((await assertRejects(() => rig.frontend.reconnect(), VhostUserError)).kind, "unsupported");
});
