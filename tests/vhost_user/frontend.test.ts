import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { GuestMemoryError, OsError } from "membacking";
import { ProtocolFeature, VhostUserError, VhostUserFrontend, VhostUserMemory } from "membacking/vhost-user";
import { descriptors, descriptorsAre, Rig, RING } from "./rig.ts";
import { EVERYTHING, ScriptedBackend, SOME_FEATURE, without } from "./scripted_backend.ts";

/** The error that `what` ends with, by its kind. */
async function kindOf(what: () => Promise<unknown>): Promise<string> {
  return (await assertRejects(what, VhostUserError)).kind;
}

Deno.test("a front end agrees with its back end on what both know, and says what came of it", async () => {
  await using backend = await ScriptedBackend.start();
  const { HOST_NOTIFIER, PAGEFAULT } = ProtocolFeature;
  using frontend = await backend.connect({
    ...EVERYTHING,
    protocolFeatures: EVERYTHING.protocolFeatures | HOST_NOTIFIER | PAGEFAULT,
  });
  assertEquals(frontend.features, SOME_FEATURE);
  assertEquals(frontend.protocolFeatures, EVERYTHING.protocolFeatures);
  assertEquals([frontend.queueCount, frontend.memorySlots, frontend.state], [2, 32, "connected"]);
  const state = await backend.state();
  assertEquals(state.protocolFeatures, EVERYTHING.protocolFeatures);
  assert(state.log.includes("SET_OWNER") && state.log.includes("SET_BACKEND_REQ_FD"));
});

Deno.test("what a back end calls GET_VRING_BASE_INFLIGHT or GPA_ADDRESSES is left alone, and is no SHMEM", async () => {
  await using backend = await ScriptedBackend.start();
  const plain = without(ProtocolFeature.SHMEM);
  using frontend = await backend.connect({
    ...plain,
    protocolFeatures: plain.protocolFeatures | 1n << 20n | 1n << 21n,
  });
  assertEquals(frontend.protocolFeatures, plain.protocolFeatures);
  assertEquals((await backend.state()).protocolFeatures, plain.protocolFeatures);
  assertEquals(ProtocolFeature.SHMEM, 1n << 22n);
});

Deno.test("protocol features can be left alone, and those that need them go with them", async () => {
  await using backend = await ScriptedBackend.start();
  const { BACKEND_REQ, CONFIG } = ProtocolFeature;
  using frontend = await backend.connect(EVERYTHING, {
    protocolFeatures: EVERYTHING.protocolFeatures & ~(BACKEND_REQ | CONFIG),
  });
  const left = EVERYTHING.protocolFeatures &
    ~(BACKEND_REQ | CONFIG | ProtocolFeature.BACKEND_SEND_FD | ProtocolFeature.SHMEM);
  assertEquals(frontend.protocolFeatures, left);
  assertEquals(await kindOf(() => frontend.getConfig(0, 4)), "unsupported");
});

Deno.test("a back end from before protocol features does with 8 regions and no acknowledgements", async () => {
  await using rig = await Rig.make({ features: SOME_FEATURE, protocolFeatures: 0n }, { start: true });
  assertEquals([rig.frontend.queueCount, rig.frontend.memorySlots], [null, 8]);
  const region = rig.region();
  region.map();
  assertEquals(await rig.held(), rig.told);
  const { log, vrings } = await rig.backend.state();
  assertEquals(log.includes("SET_VRING_ENABLE"), false);
  assertEquals(vrings[0]?.running, 1);
  region.unmap();
  assertEquals(await rig.held(), ["0x0-0x1000000"]);
});

Deno.test("features are chosen among those that are offered", async () => {
  await using rig = await Rig.make();
  await assertRejects(() => rig.frontend.setFeatures(SOME_FEATURE | 1n), RangeError);
  await assertRejects(() => rig.frontend.setFeatures(1n << 26n), RangeError);
  assertEquals(await kindOf(() => rig.startVring()), "unsupported");
  await rig.frontend.setFeatures(SOME_FEATURE);
  assertEquals((await rig.backend.state()).features, SOME_FEATURE | 1n << 30n);
});

Deno.test("a vring starts where memory is shared and nowhere else, and stops where it was left", async () => {
  await using rig = await Rig.make(EVERYTHING, { start: true });
  const { frontend } = rig;
  const { vrings } = await rig.backend.state();
  assertEquals(vrings[0], {
    ...{ SET_VRING_NUM: 8, SET_VRING_BASE: 0, SET_VRING_CALL: 1, SET_VRING_KICK: 1, SET_VRING_ENABLE: 1 },
    ...{ running: 1, flags: 0, descriptor: (rig.memory.table[0]?.userAddress ?? 0) + RING.descriptor },
  });
  assertEquals(rig.kick.take(), 1);
  assertEquals(await kindOf(() => rig.startVring()), "refused");
  const outside = { ...RING, used: 0x2000_0000 };
  const error = await assertRejects(() => frontend.startVring(1, outside), GuestMemoryError);
  assertEquals([error.gpa, error.kind], [0x2000_0000, "not-mapped"]);
  await assertRejects(() => frontend.startVring(2, RING), RangeError);
  assertEquals(frontend.vrings, [{ index: 0, state: "running" }]);
  assertEquals(await frontend.stopVring(0), 3);
  assertEquals(await kindOf(() => frontend.stopVring(0)), "refused");
  await frontend.startVring(0, { ...RING, base: 3, enabled: false });
  assertEquals((await rig.backend.state()).vrings[0]?.SET_VRING_BASE, 3);
  assertEquals((await rig.backend.state()).vrings[0]?.SET_VRING_KICK, 0);
  await frontend.setVringEnable(0, true);
  assertEquals((await rig.backend.state()).vrings[0]?.SET_VRING_ENABLE, 1);
});

Deno.test("configuration space and status are read and written", async () => {
  await using rig = await Rig.make();
  const { frontend } = rig;
  assertEquals([...await frontend.getConfig(8, 3)], [8, 9, 10]);
  assertEquals(await kindOf(() => frontend.getConfig(62, 8)), "refused");
  await assertRejects(() => frontend.getConfig(250, 8), RangeError);
  await frontend.setConfig(0, new Uint8Array(4));
  await frontend.setStatus(0x0f);
  assertEquals(await frontend.getStatus(), 0x0f);
  await assertRejects(() => frontend.setStatus(256), RangeError);
  assertEquals(await frontend.getShmemConfig(), [0x10_0000]);
});

Deno.test("many requests at once are answered each with its own answer", async () => {
  await using rig = await Rig.make();
  const answers = await Promise.all(
    Array.from({ length: 40 }, async (_, i) => [...await rig.frontend.getConfig(i, 2)]),
  );
  assertEquals(answers, Array.from({ length: 40 }, (_, i) => [i, i + 1]));
});

Deno.test("a reset stops the vrings and forgets the features, and the memory stays", async () => {
  await using rig = await Rig.make(EVERYTHING, { start: true });
  await rig.frontend.resetDevice();
  assertEquals(rig.frontend.vrings, []);
  assertEquals(await kindOf(() => rig.startVring()), "unsupported");
  assertEquals(await rig.held(), ["0x0-0x1000000"]);
  await rig.frontend.setFeatures(SOME_FEATURE);
  await rig.startVring();
  await using other = await Rig.make(without(ProtocolFeature.RESET_DEVICE));
  assertEquals(await kindOf(() => other.frontend.resetDevice()), "unsupported");
});

Deno.test("a back end is told of a change of its configuration space", async () => {
  const { promise, resolve } = Promise.withResolvers<void>();
  await using rig = await Rig.make(EVERYTHING, { onConfigChange: resolve });
  await rig.backend.ask({ request: 2, payload: new Uint8Array(0), fds: [], needReply: true });
  await promise;
  assertEquals(await rig.backend.answers(1), [0n]);
});

Deno.test("where nobody listens, connecting says so, and waits if it was told to", async () => {
  const path = `${Deno.makeTempDirSync()}/socket`;
  assertEquals((await assertRejects(() => VhostUserFrontend.connect(path), OsError)).code, "ENOENT");
  await using backend = await ScriptedBackend.start();
  const connecting = VhostUserFrontend.connect(path, { patience: 10_000 });
  await backend.listen(path, EVERYTHING);
  using frontend = await connecting;
  assertEquals(frontend.state, "connected");
  await assertRejects(() => VhostUserFrontend.connect("x".repeat(200)), RangeError);
});

Deno.test("whoever does not speak the protocol is found out, and nothing is left of him", async () => {
  await using backend = await ScriptedBackend.start();
  const before = descriptors();
  const acts = ["short", "long", "huge", "version", "die", "die-mid-reply", "many-fds", "not-a-reply"] as const;
  for (const on of ["GET_FEATURES", "GET_PROTOCOL_FEATURES", "GET_QUEUE_NUM", "GET_MAX_MEM_SLOTS"] as const) {
    for (const act of acts) {
      const error = await assertRejects(
        () => backend.connect({ ...EVERYTHING, faults: [{ on, act }] }),
        VhostUserError,
      );
      assertEquals(error.kind, act.startsWith("die") ? "disconnected" : "protocol", `${on} ${act}`);
    }
  }
  const hang = { ...EVERYTHING, faults: [{ on: "GET_FEATURES", act: "hang" } as const] };
  assertEquals(await kindOf(() => backend.connect(hang, { deadline: 250 })), "deadline");
  for (const memSlots of [0n]) {
    assertEquals(await kindOf(() => backend.connect({ ...EVERYTHING, memSlots })), "protocol");
  }
  await backend.die();
  await descriptorsAre(before);
});

Deno.test("a back end that claims more slots than make sense is taken at its word up to a limit", async () => {
  await using backend = await ScriptedBackend.start();
  using frontend = await backend.connect({ ...EVERYTHING, memSlots: 2n ** 64n - 1n });
  assertEquals(frontend.memorySlots, 4096);
});

Deno.test("a front end has one memory, and needs it for a vring", async () => {
  await using rig = await Rig.make();
  assertThrows(() => new VhostUserMemory(rig.frontend), TypeError);
  await using backend = await ScriptedBackend.start();
  using frontend = await backend.connect();
  await frontend.setFeatures(0n);
  assertEquals(await kindOf(() => frontend.startVring(0, RING)), "unsupported");
});

Deno.test("a front end, its memory and its back end go in any order, and nothing is left", async () => {
  const before = descriptors();
  for (const order of ["front end first", "memory first", "back end first", "manager first"] as const) {
    await using rig = await Rig.make(EVERYTHING, { start: true });
    if (order === "front end first") rig.frontend[Symbol.dispose]();
    if (order === "memory first") rig.memory[Symbol.dispose]();
    if (order === "back end first") await rig.backend.die();
    if (order === "manager first") rig.guest[Symbol.dispose]();
    else assertEquals(rig.guest.memory.readUint8(0), 0);
  }
  await descriptorsAre(before);
});
