import { assert, assertEquals } from "@std/assert";
import { GuestMemoryManager, Snapshot } from "membacking";

/** What came of it. */
export interface SoakResult {
  readonly children: number;
  readonly steps: number;
  readonly snapshots: number;
}

/**
 * Has children copy memory at random, one after the other, and kills each at a random moment, for so many seconds. Whatever
 * they leave on the disk has to be whole or recognizably unfinished, and nothing else of them may stay.
 */
export async function runSoak(seconds: number, seed: number): Promise<SoakResult> {
  const end = performance.now() + 1000 * seconds;
  let [children, steps, snapshots] = [0, 0, 0];
  do {
    const directory = Deno.makeTempDirSync();
    try {
      const child = new Deno.Command(Deno.execPath(), {
        args: [
          "run",
          "-A",
          "--no-check",
          new URL("soak_child.ts", import.meta.url).pathname,
          directory,
          `${seed + children}`,
        ],
        stdout: "piped",
        stderr: "piped",
      }).spawn();
      const errors = new Response(child.stderr).text();
      const output = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
      const wanted = 100 + (seed + 37 * children) % 400;
      let done = 0;
      while (done < wanted) {
        const { value, done: ended } = await output.read();
        if (ended) throw new Error(`The child of seed ${seed + children} ended after ${done} steps: ${await errors}`);
        done = Number(value.trimEnd().split("\n").at(-1));
      }
      await new Promise((resolve) => setTimeout(resolve, (seed + 13 * children) % 17));
      child.kill("SIGKILL");
      const { signal } = await child.status;
      assertEquals([signal, await errors], ["SIGKILL", ""]);
      await output.cancel();
      children++;
      steps += done;
      const names = [...Deno.readDirSync(directory)].map(({ name }) => name);
      const unfinished = names.filter((name) => name.endsWith(".partial"));
      assert(unfinished.length <= 1, `${names}`);
      for (const name of names.filter((name) => !unfinished.includes(name))) {
        // A directory that was being removed has lost a file, and says so.
        if ([...Deno.readDirSync(`${directory}/${name}`)].length < 2) continue;
        using snapshot = await Snapshot.open(`${directory}/${name}`, { verify: true });
        using _guest = GuestMemoryManager.restore(snapshot);
        snapshots++;
      }
    } finally {
      Deno.removeSync(directory, { recursive: true });
    }
  } while (performance.now() < end);
  return { children, steps, snapshots };
}
