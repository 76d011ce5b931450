/**
 * Clients in other processes that are killed, stopped or write garbage at any moment: the owner goes on, and what was
 * theirs is gone.
 *
 * @module
 */

import { unwrap } from "../../../ffi/os/os_error.ts";
import { libc } from "../../../ffi/os/libc.ts";
import type { Family, Notes } from "../family.ts";
import type { Random } from "../random.ts";
import { baseline, leakedAtLast } from "../resources.ts";
import { Known } from "../stage.ts";

const wait = (milliseconds: number) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** A process that is a client, or none. */
function child(fd: number, seed: number): Deno.ChildProcess {
  return new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "--quiet", "-A", "--no-check", new URL("../attacker_process.ts", import.meta.url).pathname],
      ...[`${fd}`, `${seed}`],
    ],
    ...{ stdin: "null", stdout: "null", stderr: "null" },
  }).spawn();
}

async function endSomehow(random: Random, process: Deno.ChildProcess, notes: Notes): Promise<void> {
  if (random.oneIn(3)) {
    notes.try("stop", () => process.kill("SIGSTOP"));
    await wait(random.below(400));
  }
  notes.try("kill", () => process.kill("SIGKILL"));
  await process.status;
}

const family: Family = {
  name: "processes",
  timeout: 60_000,
  async attack(random, notes) {
    new Known()[Symbol.dispose]();
    const before = await baseline();
    {
      using known = new Known();
      for (let round = 0; round < 2; round++) {
        const served = Array.from(
          { length: 1 + random.below(2) },
          () => known.manager.serveProcess((fd) => child(fd, random.next()), { deadline: 300 }),
        );
        // One that says nothing that makes sense, here in this process: the other end is written by hand.
        const garbage = known.manager.serveProcess((fd) => {
          const { sys, errno } = libc();
          for (let left = 1 + random.below(4); left > 0; left--) {
            const bytes = crypto.getRandomValues(new Uint8Array(1 + random.below(300)));
            notes.try("garbage", () => unwrap(sys.write(fd, bytes, BigInt(bytes.length)), errno[0], "write"));
          }
          return fd;
        });
        await wait(random.oneIn(3) ? random.below(20) : 150 + random.below(300));
        for (const one of served) {
          for (let i = 0; i < 5; i++) {
            notes.try("a request", () => known.region.map({ writable: i % 2 === 0 }));
            if (random.oneIn(2)) await wait(1);
          }
          await endSomehow(random, one.child, notes);
          if (random.oneIn(2)) notes.try("dispose", () => one[Symbol.dispose]());
        }
        notes.try("dispose", () => garbage[Symbol.dispose]());
        notes.try("map", () => known.region.map({ writable: true }));
      }
      for (const until = performance.now() + 5000; performance.now() < until;) {
        if (known.manager.regions().length === 1) break;
        await wait(20);
      }
      const left = known.manager.regions().map(({ name }) => name);
      notes.claim(left.length === 1, `processes that are gone have left the regions ${left}`);
      known.check(notes);
    }
    for (const left of await leakedAtLast(before)) notes.broken(left);
  },
};

export default family;
