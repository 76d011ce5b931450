// What clients in other threads and other processes write counts as written, whenever they came and however they end.

import { assertEquals } from "@std/assert";
import { Mappable, MemoryRange, RegionManager, VaMapper } from "membacking";
import { Remote } from "../clients/remote.ts";
import { RemoteProcess } from "../clients/remote_process.ts";
import { taken } from "./rig.ts";
import { PAGE } from "../support/units.ts";

/** A client somewhere else, told what to do. */
interface Elsewhere extends AsyncDisposable {
  run(code: string, values?: Record<string, unknown>): Promise<unknown>;
}

const KINDS: readonly { name: string; start: (regions: RegionManager) => Promise<Elsewhere> }[] = [
  { name: "Worker", start: (regions) => Remote.start(regions) },
  { name: "process", start: (regions) => RemoteProcess.start(regions) },
];

class Rig implements Disposable {
  readonly #stack = new DisposableStack();
  readonly regions: RegionManager = this.#stack.use(
    new RegionManager(this.#stack.use(VaMapper.reserve(256 * PAGE)), { logger: SILENT }),
  );

  constructor() {
    const file = this.#stack.use(Mappable.memfd("rig", 256 * PAGE));
    const ram = this.regions.newRegion({ name: "ram", range: new MemoryRange(0, 256 * PAGE), priority: 0 });
    ram.addMapping({ rangeInRegion: ram.range, mappable: file });
    ram.map();
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}

const quiet = () => {};
const SILENT = { debug: quiet, info: quiet, warn: quiet, error: quiet };

for (const { name, start } of KINDS) {
  Deno.test(`DirtyTracker: what a client in another ${name} writes counts as written`, async () => {
    using rig = new Rig();
    await using early = await start(rig.regions);
    await early.run("client.memory.writeUint8(0, 1);");
    using tracker = rig.regions.trackDirty();
    assertEquals(taken(tracker), "");
    await early.run("client.memory.writeUint32(p * 4096 - 2, 1); client.memory.readUint32(9 * 4096);", { p: 3 });
    assertEquals(taken(tracker), "2-3");
    await using late = await start(rig.regions);
    await late.run("client.memory.write(10 * 4096, new Uint8Array(3 * 4096));");
    await early.run("client.memory.compareExchangeUint32(20 * 4096, 0, 1); client.memory.fill(30 * 4096, 5, 1);");
    assertEquals(taken(tracker), "10-12 20 30");
    // Again to a page that it has marked before.
    await early.run("client.memory.writeUint8(20 * 4096 + 9, 1);");
    assertEquals(taken(tracker), "20");
    assertEquals(taken(tracker), "");
    tracker[Symbol.dispose]();
    await late.run("client.memory.writeUint8(40 * 4096, 1);");
    using next = rig.regions.trackDirty();
    assertEquals(taken(next), "");
    await late.run("client.memory.writeUint8(41 * 4096, 1);");
    assertEquals(taken(next), "41");
  });

  Deno.test(`DirtyTracker: a lock of a client in another ${name} counts as written while it is held, and once after`, async () => {
    using rig = new Rig();
    await using client = await start(rig.regions);
    const lock = (page: number, write: boolean) =>
      client.run("kept.lock = client.memory.lock(MemoryRange.of(page * 4096, 8192), { write });", { page, write });
    const release = () => client.run("kept.lock[Symbol.dispose]();");
    await lock(5, true);
    using tracker = rig.regions.trackDirty();
    for (let i = 0; i < 3; i++) assertEquals(taken(tracker), "5-6");
    await release();
    assertEquals(taken(tracker), "5-6");
    assertEquals(taken(tracker), "");
    // Taken and released while nobody looked.
    await lock(50, true);
    await release();
    assertEquals(taken(tracker), "50-51");
    await lock(60, false);
    assertEquals(taken(tracker), "");
    await release();
    assertEquals(taken(tracker), "");
  });

  Deno.test(`DirtyTracker: what a client in another ${name} had locked or written when it ended counts as written`, async () => {
    using rig = new Rig();
    using tracker = rig.regions.trackDirty();
    {
      await using client = await start(rig.regions);
      await client.run(`
        kept.lock = client.memory.lock(MemoryRange.of(7 * 4096, 4096), { write: true });
        client.memory.writeUint8(9 * 4096, 1);
      `);
    }
    // It is gone, and the owner may not have noticed yet.
    assertEquals(taken(tracker), "7 9");
    const deadline = performance.now() + 10_000;
    while (rig.regions.inspect().locks.length > 0 && performance.now() < deadline) {
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    assertEquals(rig.regions.inspect().locks, []);
    const last = taken(tracker);
    assertEquals(last === "7" || last === "", true, last);
    assertEquals(taken(tracker), "");
  });
}
