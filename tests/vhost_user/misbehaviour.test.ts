import { assert, assertEquals, assertNotEquals, assertRejects, assertThrows } from "@std/assert";
import { MappingError } from "membacking";
import { ProtocolFeature, VhostUserError } from "membacking/vhost-user";
import { BackendRequest } from "../../src/vhost_user/protocol.ts";
import { processorTime } from "../support/proc.ts";
import { ADDED_AT, descriptors, descriptorsAre, Rig } from "./rig.ts";
import type { Act, Script } from "./script.ts";
import { EVERYTHING, without } from "./scripted_backend.ts";

const faulty = (on: "ADD_MEM_REG" | "REM_MEM_REG" | "SET_MEM_TABLE" | "GET_CONFIG", act: Act, nth = 1): Script => ({
  ...(on === "SET_MEM_TABLE" ? without(ProtocolFeature.CONFIGURE_MEM_SLOTS) : EVERYTHING),
  faults: [{ on, act, nth }],
});

/** The error of the back end behind a failed request. */
function reasonOf(request: () => void): VhostUserError {
  const error = assertThrows(request, MappingError);
  assertEquals(error.outOfStep, []);
  assert(error.cause instanceof VhostUserError, String(error.cause));
  return error.cause;
}

/** Waits until the owner is told that the back end is not there any more. */
function disconnection(): { promise: Promise<VhostUserError>; onDisconnect: (error: VhostUserError) => void } {
  const { promise, resolve } = Promise.withResolvers<VhostUserError>();
  return { promise, onDisconnect: resolve };
}

for (const act of ["die", "die-mid-reply", "ack-and-die"] as const) {
  Deno.test(`a back end that is gone in the middle of a request fails no request (${act})`, async () => {
    const before = descriptors();
    for (const on of ["ADD_MEM_REG", "SET_MEM_TABLE"] as const) {
      const { promise, onDisconnect } = disconnection();
      await using rig = await Rig.make(faulty(on, act, 2), { start: true, onDisconnect });
      using region = rig.region();
      region.map();
      assertEquals(rig.guest.memory.readUint8(ADDED_AT), 0);
      assertEquals((await promise).kind, "disconnected");
      assertEquals([rig.frontend.state, rig.memory.table], ["disconnected", []]);
      assertEquals(rig.frontend.vrings, [{ index: 0, state: "lost" }]);
      region.unmap();
      region.map();
      assertEquals((await assertRejects(() => rig.frontend.getStatus(), VhostUserError)).kind, "disconnected");
    }
    await descriptorsAre(before);
  });
}

const NONSENSE: readonly Act[] = [
  ...["answer-another", "many-fds", "unwanted-fd"] as const,
  ...["huge", "short", "long", "not-a-reply", "version"] as const,
];

for (const act of NONSENSE) {
  Deno.test(`a back end that breaks the protocol is cut off, and what it has is not given away (${act})`, async () => {
    const before = descriptors();
    {
      const { promise, onDisconnect } = disconnection();
      await using rig = await Rig.make(faulty("ADD_MEM_REG", act, 2), { start: true, onDisconnect });
      using region = rig.region();
      assertEquals(reasonOf(() => region.map()).kind, "protocol");
      assertEquals(region.mapParams, null);
      assertEquals((await promise).kind, "protocol");
      // The guest and the manager go on.
      using other = rig.region({ start: ADDED_AT * 2 });
      other.map();
      assertEquals(rig.guest.memory.readUint8(ADDED_AT * 2), 0);
      // The back end sees that its connection has ended, closes it, and so is gone.
      for (let i = 0; rig.frontend.state === "cut off" && i < 1000; i++) {
        await new Promise((done) => setTimeout(done, 1));
      }
      assertEquals(rig.frontend.state, "disconnected");
      region.map();
    }
    await descriptorsAre(before);
  });
}

Deno.test("an answer too many ends the connection, whoever sees it first", async () => {
  const { promise, onDisconnect } = disconnection();
  await using rig = await Rig.make(faulty("ADD_MEM_REG", "answer-twice", 2), { onDisconnect });
  using region = rig.region();
  try {
    region.map();
  } catch (error) {
    assert(error instanceof MappingError);
  }
  assertEquals((await promise).kind, "protocol");
});

Deno.test("a back end that hangs costs one deadline, and keeps what it has until it is gone", async () => {
  await using rig = await Rig.make(faulty("REM_MEM_REG", "hang"), { start: true, deadline: 250 });
  const region = rig.region();
  region.map();
  const start = performance.now();
  assertEquals(reasonOf(() => region.unmap()).kind, "deadline");
  assert(performance.now() - start >= 249);
  assertEquals(rig.frontend.state, "cut off");
  // Still there for guest and back end, and not to be taken away from it, now without waiting.
  assertEquals(rig.guest.memory.readUint8(ADDED_AT), 0);
  const again = reasonOf(() => region.unmap());
  assertEquals([again.kind, (again.cause as VhostUserError).kind], ["hung", "deadline"]);
  // What takes nothing away from it goes on.
  using other = rig.region({ start: ADDED_AT * 2 });
  other.map();
  other.unmap();
  assertEquals((await assertRejects(() => rig.frontend.reconnect(), VhostUserError)).kind, "refused");
  await rig.backend.die();
  region.unmap();
  assertEquals(rig.frontend.state, "disconnected");
  region[Symbol.dispose]();
});

Deno.test("a back end that hangs takes its deadline, and no processor", async () => {
  await using rig = await Rig.make(faulty("REM_MEM_REG", "hang"), { deadline: 250 });
  const region = rig.region();
  region.map();
  const [start, ran] = [performance.now(), processorTime()];
  assertEquals(reasonOf(() => region.unmap()).kind, "deadline");
  const [waited, busy] = [performance.now() - start, processorTime() - ran];
  assert(busy < waited / 2, `${busy} of ${waited} ms`);
  rig.frontend[Symbol.dispose]();
  region[Symbol.dispose]();
});

Deno.test("disposing the front end of a back end that hangs is the owner's word that its memory is free", async () => {
  await using rig = await Rig.make(faulty("REM_MEM_REG", "hang"), { start: true, deadline: 250 });
  const region = rig.region();
  region.map();
  assertThrows(() => region.unmap(), MappingError);
  rig.frontend[Symbol.dispose]();
  region[Symbol.dispose]();
});

Deno.test("an answer that does not come in time is given up on the event loop as well", async () => {
  await using rig = await Rig.make(faulty("GET_CONFIG", "hang"), { deadline: 250 });
  const both = await Promise.allSettled([rig.frontend.getConfig(0, 4), rig.frontend.getStatus()]);
  assertEquals(both.map((each) => each.status === "rejected" && (each.reason as VhostUserError).kind), [
    "deadline",
    "deadline",
  ]);
  assertEquals(rig.frontend.state, "cut off");
});

Deno.test("a slow back end is waited for, and what is asked meanwhile is answered too", async () => {
  await using rig = await Rig.make(faulty("ADD_MEM_REG", "slow", 2));
  const config = rig.frontend.getConfig(4, 1);
  using region = rig.region();
  region.map();
  assertEquals([...await config], [4]);
  assertEquals(await rig.held(), rig.told);
});

Deno.test("lies about the configuration space are found out", async () => {
  for (const act of ["short", "long"] as const) {
    await using rig = await Rig.make(faulty("GET_CONFIG", act));
    assertEquals((await assertRejects(() => rig.frontend.getConfig(0, 8), VhostUserError)).kind, "protocol");
  }
});

Deno.test("in-flight memory that is not as long as it is said to be is refused", async () => {
  const acts: readonly Act[] = ["short", "unwanted-fd", "many-fds"];
  for (const act of acts) {
    await using rig = await Rig.make({ ...EVERYTHING, faults: [{ on: "GET_INFLIGHT_FD", act }] });
    const lie = () => rig.frontend.trackInflight({ queues: 1, queueSize: 8 });
    assertEquals((await assertRejects(lie, VhostUserError)).kind, "protocol");
  }
});

Deno.test("neither side waits for the other when both ask at once", async () => {
  for (const [request, answer] of [[BackendRequest.CONFIG_CHANGE_MSG, 1n], [BackendRequest.SHMEM_MAP, 1n]] as const) {
    await using rig = await Rig.make({
      ...faulty("ADD_MEM_REG", "ask-first", 2),
      asksFirst: { request, payload: new Uint8Array(0), fds: [], needReply: true },
    });
    using region = rig.region();
    const start = performance.now();
    // The back end answers only when it has been answered, which the owner cannot do while it waits.
    region.map();
    assert(performance.now() - start < 900, "this took as long as the deadline");
    assertEquals(await rig.backend.answers(1), [answer]);
    assertEquals(await rig.held(), rig.told);
  }
});

Deno.test("scribbling over rings, memory and log takes nobody down", async () => {
  await using rig = await Rig.make(EVERYTHING, { start: true });
  const marked: [number, number][] = [];
  rig.memory.takeDirty(() => {});
  await rig.backend.scribble();
  rig.memory.takeDirty((start, end) => marked.push([start, end]));
  // Everything it has, and nothing beyond, is as dirty as it says.
  assertEquals(marked, [[0, 0x100_0000]]);
  using region = rig.region();
  region.map();
  assertEquals(await rig.held(), rig.told);
  rig.guest.memory.fill(0, 0x1000, 0);
  assertEquals(rig.guest.memory.readUint8(0x10), 0);
});

Deno.test("requests without end do not keep the owner from anything", async () => {
  let changes = 0;
  await using rig = await Rig.make(EVERYTHING, { onConfigChange: () => changes++ });
  const one = { request: BackendRequest.CONFIG_CHANGE_MSG, payload: new Uint8Array(0), fds: [], needReply: true };
  await rig.backend.ask(...Array.from({ length: 500 }, () => one));
  using region = rig.region();
  region.map();
  const answers = await rig.backend.answers(500);
  assert(answers.every((answer) => answer === 0n || answer === 1n));
  assertEquals(changes, answers.filter((answer) => answer === 0n).length);
  assertEquals(await rig.held(), rig.told);
});

Deno.test("nonsense on the socket for requests ends the connection", async () => {
  const { promise, onDisconnect } = disconnection();
  await using rig = await Rig.make(EVERYTHING, { onDisconnect });
  await rig.backend.bytes("back", new Uint8Array(16).fill(0xff));
  assertEquals((await promise).kind, "protocol");
});

Deno.test("nonsense between two requests ends the connection, at the next request at the latest", async () => {
  await using rig = await Rig.make();
  await rig.backend.bytes("front", new Uint8Array(16).fill(0xff));
  using region = rig.region();
  try {
    region.map();
    assertEquals(await rig.backend.state().then(({ regions }) => regions.length) <= 1, true);
  } catch (error) {
    // Read while an answer was due: the request fails as with any wrong answer, and the next one has no back end.
    if (!(error instanceof MappingError && error.cause instanceof VhostUserError)) throw error;
    assertEquals([error.outOfStep, error.cause.kind], [[], "protocol"]);
    // It is cut off at once; when it closes its own end is up to it.
    assertNotEquals(rig.frontend.state, "connected");
    region.map();
  }
  assertEquals(rig.guest.memory.readUint8(ADDED_AT), 0);
});
