/**
 * An owner that is killed while a process of its own waits for it, for a test.
 *
 * @module
 */

import { Mappable, MemoryRange, RegionManager, VaMapper } from "membacking";

/** Where the two tell each other how far they are. */
export const STEP = 0x2000;

if (import.meta.main) {
  using va = VaMapper.reserve(0x10_0000);
  using regions = new RegionManager(va);
  using file = Mappable.memfd("ram", 0x8000);
  using ram = regions.newRegion({ name: "ram", range: new MemoryRange(0, 0x8000), priority: 0 });
  ram.addMapping({ rangeInRegion: new MemoryRange(0, 0x8000), mappable: file });
  ram.map();
  using _served = regions.serveProcess((fd) =>
    new Deno.Command(Deno.execPath(), {
      args: ["run", "--no-check", "--allow-ffi", new URL("./process_orphan.ts", import.meta.url).href, String(fd)],
      stdin: "null",
      stdout: "inherit",
      stderr: "inherit",
    }).spawn()
  );
  const step = async (wanted: number) => {
    while (regions.memory.readUint8(STEP) !== wanted) await new Promise((resolve) => setTimeout(resolve, 5));
  };
  await step(1);
  using _lock = regions.memory.lock(new MemoryRange(0x1_0000, 0x1_1000));
  regions.memory.writeUint8(STEP, 2);
  await step(3);
  Deno.kill(Deno.pid, "SIGKILL");
}
