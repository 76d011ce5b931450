/**
 * Back ends that die at random, one after the other, while memory changes and a guest runs.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { LimitError, Mappable, MappingError, MemoryRange, OsError, type RegionHandle } from "membacking";
import { Kvm } from "membacking/kvm";
import { ProtocolFeature, VhostUserError, VhostUserFrontend } from "membacking/vhost-user";
import { internalsOf } from "../../src/regions/region_manager.ts";
import { startLongMode, touchForever, VcpuThread } from "../support/guest.ts";
import { noKvm } from "../support/require.ts";
import { ADDED_AT, RAM_LENGTH, rangesOf, Rig, RING } from "./rig.ts";
import type { Act, Fault, Script } from "./script.ts";
import { EVERYTHING, ScriptedBackend, SOME_FEATURE } from "./scripted_backend.ts";

/** What a soak came to. */
export interface SoakReport {
  /** How many back ends came to their end, by how. */
  readonly ends: Readonly<Record<string, number>>;
  /** How many requests were made, and how many of them failed. */
  readonly requests: number;
  readonly failed: number;
  /** How often the table of a back end was compared with the memory map. */
  readonly compared: number;
}

const REQUESTS: readonly Fault["on"][] = [
  ...["GET_FEATURES", "SET_FEATURES", "GET_PROTOCOL_FEATURES", "GET_QUEUE_NUM", "GET_MAX_MEM_SLOTS"] as const,
  ...["SET_BACKEND_REQ_FD", "ADD_MEM_REG", "REM_MEM_REG", "SET_MEM_TABLE", "SET_LOG_BASE"] as const,
  ...["SET_VRING_NUM", "SET_VRING_ADDR", "SET_VRING_BASE", "SET_VRING_KICK", "SET_VRING_ENABLE"] as const,
  ...["GET_VRING_BASE", "GET_CONFIG", "GET_STATUS", "SET_INFLIGHT_FD"] as const,
];
const DEATHS: readonly Act[] = ["die", "die-mid-reply", "ack-and-die", "die", "die-mid-reply", "ack-and-die"];
const CRIMES: readonly Act[] = [
  ...["answer-another", "answer-twice", "many-fds", "unwanted-fd", "huge", "short", "long"] as const,
  ...["not-a-reply", "version", "refuse", "slow"] as const,
];
const REGIONS = 4;
const LENGTH = 0x10_0000;
/** Where the guest counts. */
const COUNTER = 0x20_0000;

/** Pseudo-random numbers that a seed repeats (mulberry32). */
function randomFrom(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = state + 0x6d2b_79f5 | 0;
    let t = Math.imul(state ^ state >>> 15, 1 | state);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return ((t ^ t >>> 14) >>> 0) % below;
  };
}

/** Goes on until `isOver` says so, given how many back ends have come to their end. */
export async function soak(seed: number, isOver: (ends: number) => boolean): Promise<SoakReport> {
  const random = randomFrom(seed);
  const pick = <T>(list: readonly T[]): T => list[random(list.length)]!;
  const script = (): Script => {
    const kind = random(20);
    const act: Act = kind === 0 ? "hang" : kind < 12 ? pick(DEATHS) : pick(CRIMES);
    const protocolFeatures = EVERYTHING.protocolFeatures &
      ~(random(3) === 0 ? ProtocolFeature.CONFIGURE_MEM_SLOTS : 0n);
    return { ...EVERYTHING, protocolFeatures, faults: [{ on: pick(REQUESTS), nth: 1 + random(4), act }] };
  };

  await using stack = new AsyncDisposableStack();
  const path = `${Deno.makeTempDirSync()}/socket`;
  const backend = stack.use(await ScriptedBackend.start());
  // The first behaves, so that there is something to be brought back.
  await backend.listen(path, {
    ...EVERYTHING,
    protocolFeatures: EVERYTHING.protocolFeatures & ~ProtocolFeature.CONFIGURE_MEM_SLOTS,
  });
  const ends: Record<string, number> = {};
  const frontend = await VhostUserFrontend.connect(path, {
    ...{ deadline: 400, protocolFeatures: EVERYTHING.protocolFeatures & ~ProtocolFeature.CONFIGURE_MEM_SLOTS },
    onDisconnect: ({ kind }) => ends[kind] = (ends[kind] ?? 0) + 1,
  });
  const rig = stack.use(new Rig(backend, frontend, {}));
  await frontend.setFeatures(SOME_FEATURE);
  await frontend.trackInflight({ queues: 1, queueSize: 8 });
  await rig.startVring();
  const counter = await countingGuest(rig, stack);
  const regions = Array.from({ length: REGIONS }, (_, i) => rig.region({ start: ADDED_AT + i * 2 * LENGTH }));
  stack.defer(() => regions.forEach((region) => region[Symbol.dispose]()));
  await backend.listen(path, ...Array.from({ length: 5000 }, script));
  await backend.die();

  let [requests, failed, compared, died] = [0, 0, 0, 0];
  while (!isOver(died)) {
    try {
      await frontend.reconnect({ patience: 1000 });
    } catch (error) {
      assert(error instanceof VhostUserError || error instanceof OsError || error instanceof LimitError, String(error));
    }
    for (let i = random(12); i >= 0 && frontend.state === "connected"; i--) {
      requests++;
      try {
        change(rig, pick(regions), random);
        if (random(4) === 0) await ask(rig, random);
      } catch (error) {
        failed++;
        if (error instanceof MappingError) assertEquals(error.outOfStep, []);
        assert(error instanceof MappingError || error instanceof VhostUserError, String(error));
      }
    }
    if (frontend.state === "connected") {
      const { regions: held } = await backend.state();
      if (frontend.state === "connected") {
        assertEquals(rangesOf(held), rangesOf(visibleRam(rig)), `seed ${seed}`);
        compared++;
      }
    }
    await backend.die();
    for (let i = 0; frontend.state !== "disconnected"; i++) {
      assert(i < 5000, "a back end that has closed its socket is still there");
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    died++;
    if (died % 50 === 0) await goesOn(counter);
  }
  return { ends, requests, failed, compared };
}

/** Waits until a guest has counted on. */
async function goesOn(counter: () => number): Promise<void> {
  const count = counter();
  for (let i = 0; count >= 0 && counter() === count; i++) {
    assert(i < 5000, "the guest does not go on");
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

/** A change of the memory map. */
function change(rig: Rig, region: RegionHandle, random: (below: number) => number): void {
  const at = random(LENGTH / 0x1000 - 16) * 0x1000;
  switch (random(6)) {
    case 0:
    case 1:
      return region.map();
    case 2:
      return region.unmap();
    case 3:
      return region.removeMappings(MemoryRange.of(at, 0x1000 * (1 + random(16))));
    case 4: {
      using file = Mappable.memfd("whole", LENGTH);
      return region.addMapping({ rangeInRegion: new MemoryRange(0, LENGTH), mappable: file });
    }
    default:
      rig.memory.takeDirty((start, end) => assert(start < end));
      rig.guest.memory.writeUint16(RING.used + 2, random(0x1_0000));
  }
}

/** A request about the device. */
async function ask({ frontend }: Rig, random: (below: number) => number): Promise<void> {
  if (random(2) === 0) await frontend.getConfig(0, 8);
  else await frontend.getStatus();
}

/** The RAM that is visible. */
function visibleRam({ guest }: Rig): { gpa: number; length: number }[] {
  const found: { gpa: number; length: number }[] = [];
  for (const { start, end, value } of internalsOf(guest.regions).pieces(0, Number.MAX_SAFE_INTEGER)) {
    if (value.region.type === "ram") found.push({ gpa: start, length: end - start });
  }
  return found;
}

/** A guest that adds to numbers in memory of its own without end, where there is KVM: its first number. */
async function countingGuest(rig: Rig, stack: AsyncDisposableStack): Promise<() => number> {
  if (noKvm !== undefined) return () => -1;
  const kvm = stack.use(Kvm.open());
  const vm = stack.use(kvm.createVm());
  stack.use(rig.guest.attachPartition(vm));
  const vcpu = stack.use(vm.createVcpu(0));
  vcpu.setCpuid2(kvm.getSupportedCpuid());
  startLongMode(vcpu, {
    write: (gpa, bytes) => rig.guest.memory.write(gpa, bytes),
    ...{ tables: 0x2_0000, code: 0x1000, program: touchForever(COUNTER, COUNTER + 0x1000, 0x1000) },
    ranges: [{ start: 0, end: RAM_LENGTH }],
  });
  stack.use(await VcpuThread.start(vcpu));
  return () => Number(rig.guest.memory.readBigUint64(COUNTER));
}
