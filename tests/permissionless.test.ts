import { assert } from "@std/assert";

Deno.test("a VMM's own tests run under deno test without any flag", () => {
  const { success, stdout, stderr } = new Deno.Command(Deno.execPath(), {
    args: ["test", "--no-prompt", "--no-check", "--quiet", "tests/permissionless/vmm.ts"],
    cwd: new URL("../", import.meta.url),
  }).outputSync();
  const text = new TextDecoder();
  assert(success, text.decode(stdout) + text.decode(stderr));
  assert(text.decode(stdout).includes("3 passed"), text.decode(stdout));
});
