import { assert, assertEquals } from "@std/assert";
import { SLOWNESS } from "../support/require.ts";

Deno.test("no access to guest memory ends in a signal, whatever is passed and whoever truncates a file", async () => {
  const script = new URL("fuzz_child.ts", import.meta.url);
  const seed = crypto.getRandomValues(new Uint32Array(1))[0];
  const { code, signal, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", script.href, `${seed}`, `${1500 * SLOWNESS}`],
  }).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  assertEquals([code, signal], [0, null], `seed ${seed}: ${text(stderr)}`);
  const { done, refused } = JSON.parse(text(stdout));
  assert(done > 1000 && refused > 100, `seed ${seed}: only ${done} accesses done and ${refused} refused`);
});
