import { assert, assertEquals } from "@std/assert";
import { testUnless } from "../support/require.ts";

const noStrace = (() => {
  try {
    const { success, stderr } = new Deno.Command("strace", { args: ["-o", "/dev/null", "true"] }).outputSync();
    return success ? undefined : new TextDecoder().decode(stderr).trim();
  } catch {
    return "there is no strace, which Debian has in the package of that name";
  }
})();

/** The system calls about memory and files, by name, of each stretch between two marks, by what the first mark says. */
function stretches(trace: string): Map<string, string[][]> {
  const all = new Map<string, string[][]>();
  let current: string[] | null = null;
  for (const line of trace.split("\n")) {
    const [, name, rest] = /^(\w+)\((.*)/.exec(line) ?? [];
    if (name === undefined || rest === undefined) continue;
    const mark = /"\/mark\/(\w+)(?:-(\d+))?"/.exec(rest);
    if (mark?.[1] === "begin") {
      current = [];
      const key = mark[2] ?? "";
      all.set(key, [...all.get(key) ?? [], current]);
    } else if (mark?.[1] === "end") current = null;
    else current?.push(name);
  }
  return all;
}

testUnless(noStrace, "a clone takes the same system calls at 64 MiB and at 16 GiB, and few of them", async () => {
  const file = Deno.makeTempFileSync();
  try {
    const child = new URL("clone_calls_child.ts", import.meta.url).pathname;
    // The thread that JavaScript runs on, alone: V8's own threads do as they please.
    const { success, stderr } = await new Deno.Command("strace", {
      args: ["-o", file, Deno.execPath(), "run", "-A", "--no-check", child],
    }).output();
    assert(success, new TextDecoder().decode(stderr));
    const found = stretches(Deno.readTextFileSync(file));
    assertEquals([...found.keys()], ["64", "16384"]);
    // V8 may take or give back memory in between: the shortest stretch is ours.
    const [small, large] = [...found.values()].map((all) => all.toSorted((a, b) => a.length - b.length)[0] ?? []);
    assertEquals(large, small);
    assert(small!.includes("mmap") && small!.length <= 20, `${small}`);
  } finally {
    Deno.removeSync(file);
  }
});
