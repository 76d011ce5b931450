/**
 * Kills processes at random moments of all that clients do, while the owner goes on changing its memory, and looks
 * whether anything is left of them: kill_owner.ts SECONDS SEED
 *
 * @module
 */

import { Mappable, MemoryLockedError, MemoryRange, RegionManager, VaMapper } from "membacking";
import { mappings, openFds } from "../support/proc.ts";
import { randomFrom } from "./soak_layout.ts";

const [seconds = 3, seed = 1] = Deno.args.map(Number);
const random = randomFrom(seed);
const AT_ONCE = 3;
const LENGTH = 0x10_0000;

const counts = { killed: 0, "killed while it started": 0, changes: 0, "refused: locked": 0 };
const log: string[] = [];
const quiet = () => {};
const warn = (message: string, error: unknown) => void log.push(`${message}: ${error}`);
using va = VaMapper.reserve(LENGTH);
using regions = new RegionManager(va, { logger: { debug: quiet, info: quiet, warn, error: warn } });
const files = [1, 2].map((stamp) => {
  const file = Mappable.memfd("ram", 0x8000);
  file.write(0x4000, new Uint8Array([stamp]));
  return file;
});
const ram = regions.newRegion({ name: "ram", range: new MemoryRange(0, 0x8000), priority: 0 });

function change(): void {
  const stamp = random(2);
  try {
    ram.addMapping({ rangeInRegion: new MemoryRange(0, 0x8000), mappable: files[stamp] ?? "private" });
    ram.map();
    if (regions.memory.readUint8(0x4000) !== stamp + 1) {
      throw new Error("The owner sees other memory than it has mapped");
    }
    counts.changes++;
  } catch (error) {
    if (!(error instanceof MemoryLockedError)) throw error;
    counts["refused: locked"]++;
  }
}

/** Starts a process, kills it some time after it is there, and waits until it is gone. */
async function killOne(slot: number): Promise<void> {
  using served = regions.serveProcess((fd) =>
    new Deno.Command(Deno.execPath(), {
      args: [
        "run",
        "--no-check",
        "--allow-ffi",
        new URL("./kill_child.ts", import.meta.url).href,
        String(fd),
        String(0x1_0000 * (slot + 1)),
      ],
      stdin: "null",
      stdout: "piped",
      stderr: "inherit",
    }).spawn()
  );
  const { child } = served;
  const reader = child.stdout.getReader();
  // Once in a while in the middle of its start.
  if (random(20) === 0) {
    await new Promise((resolve) => setTimeout(resolve, random(100)));
    counts["killed while it started"]++;
  } else if ((await reader.read()).done) throw new Error("A process has ended by itself");
  else await new Promise((resolve) => setTimeout(resolve, random(30)));
  child.kill("SIGKILL");
  await reader.cancel();
  const { signal } = await child.status;
  if (signal !== "SIGKILL") throw new Error(`A process has ended by ${signal}`);
  counts.killed++;
}

const fds = openFds();
const end = performance.now() + seconds * 1000;
let running = true;
const changing = (async () => {
  while (running) {
    change();
    await new Promise((resolve) => setTimeout(resolve, random(3)));
  }
})();
await Promise.all(Array.from({ length: AT_ONCE }, async (_, slot) => {
  while (performance.now() < end) await killOne(slot);
}));
running = false;
await changing;

/** What is left that should not be. */
function left(): string[] {
  const { regions: all, locks } = regions.inspect();
  const found = [...all.map(({ name }) => name).filter((name) => name !== "ram"), ...locks.map(({ range }) => range)];
  const ours = mappings(va.base, va.base + LENGTH).filter(({ file }) => file.includes("killed"));
  found.push(...ours.map(({ file }) => file));
  if (openFds() > fds + 2) found.push(`${openFds() - fds} descriptors`);
  return found;
}
const patience = performance.now() + 5000;
while (left().length > 0 && performance.now() < patience) await new Promise((resolve) => setTimeout(resolve, 50));
if (left().length > 0) throw new Error(`Left behind: ${left()}`);
if (log.length > 0) throw new Error(`${log.length} warnings, such as ${log.slice(0, 3).join("\n")}`);
ram.unmap();
console.log(JSON.stringify(counts));
Deno.exit(0);
