// The proof of written pages: a machine whose memory is written by a native guest, the owner, a Worker and a device, all at
// random, and changed by requests meanwhile, is copied round by round. Once everybody stands still and what was written
// since is copied too, both memories are equal. Without any one of the sources of written pages they are not.

import { assertEquals, assertGreater, assertLessOrEqual, assertRejects } from "@std/assert";
import { PageSet } from "membacking";
import { MemoryLocks } from "../../src/memory/memory_locks.ts";
import { WriteMarks } from "../../src/memory/write_marks.ts";
import { WrittenPages } from "../../src/memory/written_pages.ts";
import { Device } from "../../examples/precopy/device.ts";
import { DATA_AT } from "../../examples/precopy/guest.ts";
import { preCopy, SecondMemory } from "../../examples/precopy/precopy.ts";
import { kvmTest } from "../support/require.ts";
import { until } from "../clients/runner.ts";
import { PAGE, range } from "../support/units.ts";
import { Busy, END, Flaky, HOLES } from "./busy.ts";

for (const dirtyLog of ["bitmap", "ring"] as const) {
  for (const hook of [true, false]) {
    const name = `${dirtyLog}, ${hook ? "vCPUs held by a hook" : "no hook"}`;
    kvmTest(
      `pre-copy of a machine that is written and changed from all sides ends with equal memories: ${name}`,
      async () => {
        await using busy = new Busy({ dirtyLog, hook });
        busy.attach();
        await busy.startGuest(20);
        await busy.startWorker();
        for (let i = 0; i < 25; i++) {
          const { differences } = await busy.move(() => {
            for (let n = 0; n < 4; n++) busy.ownerWrites();
            for (let n = 0; n < 2; n++) busy.deviceWrites();
            busy.lockAndWrite();
            if (Math.random() < 0.3) busy.releaseLocks();
            if (Math.random() < 0.5) busy.request();
          });
          assertEquals(differences, [], `migration ${i}`);
          busy.releaseLocks();
        }
        assertGreater(busy.requests, 25);
        assertGreater(busy.partition.failures, 0);
      },
      dirtyLog === "ring" ? "DIRTY_LOG_RING" : "MANUAL_DIRTY_LOG_PROTECT2",
    );
  }
}

kvmTest("pre-copy: holes punched beside what a guest writes, without a hook, lose nothing", async () => {
  await using busy = new Busy({ dirtyLog: "bitmap", hook: false });
  busy.attach();
  await busy.startGuest(1);
  const hole = range(HOLES.start - DATA_AT, HOLES.start + PAGE - DATA_AT);
  for (let i = 0; i < 20; i++) {
    const { differences } = await busy.move(() => busy.punch(hole));
    assertEquals(differences, [], `migration ${i}`);
  }
});

kvmTest("pre-copy that is cancelled in whatever phase leaves nothing logged, and the next one succeeds", async () => {
  await using busy = new Busy({ dirtyLog: "bitmap", hook: true });
  busy.attach();
  await busy.startGuest(20);
  const phases = ["first round", "later round", "stop", "last round"] as const;
  for (const phase of phases) {
    using tracker = busy.regions.trackDirty();
    const second = new SecondMemory(busy.regions.memory);
    using held = new DisposableStack();
    const cancel = (now: boolean) => {
      if (now) throw new RangeError(`cancelled in ${phase}`);
    };
    const moving = preCopy(tracker, {
      everything: PageSet.of([range(0, END)]),
      copy: (part) => second.copy(part),
      enough: 0,
      rounds: 3,
      pause: ({ number, isLast }) => {
        cancel((phase === "first round" && number === 0) || (phase === "later round" && number === 1));
        cancel(phase === "last round" && isLast);
      },
      stop: () => {
        busy.regions.memory.writeUint8(DATA_AT, 1);
        held.use(busy.guest.pause());
        cancel(phase === "stop");
      },
    });
    await assertRejects(() => moving, RangeError, phase);
    // What the round should have copied is given back.
    if (phase !== "stop") assertGreater(tracker.take().count, 0, phase);
  }
  let logged = 0;
  busy.guest.vm.takeDirty(range(0, END), () => logged++);
  await new Promise((resolve) => setTimeout(resolve, 5));
  busy.guest.vm.takeDirty(range(0, END), () => logged++);
  assertEquals(logged, 0);
  assertEquals((await busy.move(() => busy.ownerWrites())).differences, []);
});

/** Puts `replacement` in the place of a method until the result is disposed. */
function patched<T extends object, K extends keyof T>(target: T, method: K, replacement: T[K]): Disposable {
  const original = target[method];
  target[method] = replacement;
  return { [Symbol.dispose]: () => void (target[method] = original) };
}

const SOURCES: readonly {
  readonly name: string;
  readonly leaveOut: () => Disposable;
  readonly start?: (busy: Busy) => Promise<void>;
  readonly turn?: (busy: Busy) => void;
}[] = [
  {
    name: "a guest's log",
    leaveOut: () => patched(Flaky.prototype, "takeDirty", () => {}),
    start: (busy) => busy.startGuest(20),
  },
  {
    name: "the marks of the owner",
    leaveOut: () => patched(WriteMarks.prototype, "take", () => {}),
    turn: (busy) => busy.ownerWrites(),
  },
  {
    name: "the marks of a Worker",
    leaveOut: () => patched(WriteMarks.prototype, "take", () => {}),
    start: (busy) => busy.startWorker(),
  },
  {
    name: "locks that are held",
    leaveOut: () => patched(MemoryLocks.prototype, "writers", () => []),
    turn: (busy) => busy.writeThroughLock(),
  },
  {
    name: "a device's log",
    leaveOut: () => patched(Device.prototype, "takeDirty", () => {}),
    turn: (busy) => busy.deviceWrites(),
  },
  {
    name: "what requests change",
    leaveOut: () => patched(WrittenPages.prototype, "afterSteps", () => {}),
    turn: (busy) => busy.swap(),
  },
];

for (const { name, leaveOut, start, turn = () => {} } of SOURCES) {
  kvmTest(`pre-copy without ${name} ends with memories that differ, and with it with equal ones`, async () => {
    for (const isLeftOut of [true, false]) {
      using _patch = isLeftOut ? leaveOut() : undefined;
      await using busy = new Busy({ dirtyLog: "bitmap", hook: true });
      busy.attach();
      await start?.(busy);
      let turns = 0;
      let differing = 0;
      // One move may be lucky.
      for (let i = 0; i < 5 && (differing === 0 || !isLeftOut); i++) {
        differing += (await busy.move(() => void (turns++, turn(busy)))).differences.length;
      }
      assertGreater(turns, 0);
      assertEquals(differing > 0, isLeftOut);
    }
  });
}

/** How many pages may be walked through as page tables: AMD's processors count that as a write, however it ends. */
const PAGE_TABLES = hasAmd() ? 3 : 0;

function hasAmd(): boolean {
  try {
    return Deno.statSync("/sys/module/kvm_amd").isDirectory;
  } catch {
    return false;
  }
}

kvmTest("DirtyTracker: a guest that writes nothing gives empty sets, but for its page tables", async () => {
  for (const dirtyLog of ["bitmap", "ring"] as const) {
    await using busy = new Busy({ dirtyLog, hook: true });
    busy.attach();
    using tracker = busy.regions.trackDirty();
    // It waits for longer than the test takes, after its first write.
    await busy.startGuest(2 ** 31 - 1);
    while (tracker.take().within(range(DATA_AT, END)).count === 0) {
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    const data = range(DATA_AT, END);
    await until(() => tracker.take().within(data).count === 0, "the first write has been seen");
    for (let i = 0; i < 20; i++) {
      await new Promise((resolve) => setTimeout(resolve, 1));
      const taken = tracker.take();
      assertEquals(taken.within(data).count, 0);
      assertLessOrEqual(taken.count, PAGE_TABLES);
    }
  }
});
