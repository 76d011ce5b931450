import { assert, assertEquals, assertRejects, assertStrictEquals } from "@std/assert";
import { DisposedError, GuestMemoryManager, Mappable, OsError } from "membacking";
import { range } from "../support/units.ts";

const MIB = 2 ** 20;

function resident(guest: GuestMemoryManager): number {
  return guest.inspect().usage?.resident ?? NaN;
}

Deno.test("prefault brings all RAM in, shared and private, and says how far it is", async () => {
  using guest = GuestMemoryManager.create({
    maxAddress: 64 * MIB,
    ram: [
      { ranges: [range(0, 10 * MIB)] },
      { ranges: [range(20 * MIB, 21 * MIB + 0x1000)], backing: "private", transparentHugepages: false },
    ],
    x86Legacy: false,
  });
  const total = 11 * MIB + 0x1000;
  assertEquals(resident(guest), 0);
  const progress: number[] = [];
  await guest.prefault({
    onProgress(done, all) {
      assertEquals(all, total);
      progress.push(done);
    },
  });
  assertEquals(resident(guest), total);
  assertEquals(progress.at(-1), total);
  assert(progress.every((done, i) => done > (progress[i - 1] ?? 0)));
  await guest.prefault();
  assertEquals(resident(guest), total);
});

Deno.test("prefault lets the event loop run in between", async () => {
  using guest = GuestMemoryManager.create({ maxAddress: 64 * MIB, ram: [{ ranges: [range(0, 64 * MIB)] }] });
  let turns = 0;
  const timer = setInterval(() => turns++, 0);
  await guest.prefault();
  clearInterval(timer);
  assert(turns > 0);
});

Deno.test("prefault leaves out RAM that is unmapped, and reads RAM that is read-only", async () => {
  using guest = GuestMemoryManager.create({
    maxAddress: 64 * MIB,
    ram: [{ ranges: [range(0, 4 * MIB), range(8 * MIB, 9 * MIB), range(16 * MIB, 17 * MIB)] }],
    x86Legacy: true,
  });
  using file = Mappable.memfd("device", MIB);
  const device = guest.newDeviceMemory("device", MIB);
  device.map({ offset: 0, mappable: file, length: MIB });
  device.mapToGuest(8 * MIB, true);
  guest.setRamVisibility(range(8 * MIB, 9 * MIB), "unmapped");
  guest.setRamVisibility(range(16 * MIB, 17 * MIB), "read-only");
  let last = 0;
  await guest.prefault({ onProgress: (done) => last = done });
  assertEquals([resident(guest), last], [5 * MIB, 6 * MIB]);
});

Deno.test("an aborted prefault rejects with the reason and stops", async () => {
  using guest = GuestMemoryManager.create({ maxAddress: 64 * MIB, ram: [{ ranges: [range(0, 64 * MIB)] }] });
  const reason = new Error("enough");
  const error = await assertRejects(() => guest.prefault({ signal: AbortSignal.abort(reason) }), Error);
  assertStrictEquals(error, reason);
  assertEquals(resident(guest), 0);

  const controller = new AbortController();
  let last = 0;
  const late = guest.prefault({
    signal: controller.signal,
    onProgress(done) {
      last = done;
      if (done > 8 * MIB) controller.abort();
    },
  });
  await assertRejects(() => late, DOMException);
  assert(last < 64 * MIB);
  assertEquals(resident(guest), last);
});

Deno.test("prefault ends with an error when the manager goes, a callback throws or a file is too short", async () => {
  const gone = GuestMemoryManager.create({ maxAddress: 64 * MIB, ram: [{ ranges: [range(0, 64 * MIB)] }] });
  const pending = gone.prefault();
  gone[Symbol.dispose]();
  await assertRejects(() => pending, DisposedError);

  const path = Deno.makeTempFileSync({ dir: "/dev/shm" });
  try {
    Deno.truncateSync(path, MIB);
    using file = Mappable.open(path, { write: true });
    using guest = GuestMemoryManager.create({ maxAddress: MIB, ram: [{ ranges: [range(0, MIB)], backing: file }] });
    await assertRejects(
      () =>
        guest.prefault({
          onProgress() {
            throw new Error("no more");
          },
        }),
      Error,
      "no more",
    );
    Deno.truncateSync(path, 0);
    const error = await assertRejects(() => guest.prefault(), OsError);
    assertEquals(error.code, "EFAULT");
  } finally {
    Deno.removeSync(path);
  }
});

Deno.test("prefault of no RAM is done at once", async () => {
  using guest = GuestMemoryManager.create({ maxAddress: MIB, ram: [] });
  await guest.prefault({ onProgress: () => assert(false) });
});
