import { assertEquals, assertStringIncludes } from "@std/assert";
import { makeImage, StorageDaemon, whyNoDaemon } from "../../examples/vhost/storage_daemon.ts";
import { noKvm, testUnless } from "../support/require.ts";

const ROOT = new URL("../../", import.meta.url);
const PAGE = Deno.readTextFileSync(new URL("src/vhost_user/README.md", ROOT));

/** Runs a program here, to its end. */
async function run(...args: string[]): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", "--quiet", ...args],
    cwd: ROOT,
    env: { NO_COLOR: "1" },
  }).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  assertEquals(success, true, text(stderr));
  return text(stdout);
}

testUnless(
  whyNoDaemon(),
  "the example of the page on vhost-user reads a sector of the storage daemon's disk",
  async () => {
    const [, example = ""] = PAGE.match(/```ts ignore\n([\s\S]*?)```/) ?? [];
    assertEquals(example.trimEnd().split("\n").length <= 60, true, "the example has grown beyond 60 lines");
    const directory = Deno.makeTempDirSync();
    makeImage(`${directory}/disk.img`, 100);
    // Beside the configuration that says what "membacking" is.
    const script = Deno.makeTempFileSync({ dir: new URL("tests/vhost_user/", ROOT).pathname, suffix: ".ts" });
    try {
      Deno.writeTextFileSync(script, example);
      await using daemon = StorageDaemon.start(`${directory}/disk.img`, `${directory}/disk.sock`);
      const output = await run(script, daemon.socket);
      assertStringIncludes(output, "The disk has 100n sectors");
      assertStringIncludes(output, "Status 0");
      assertStringIncludes(output, "The queue is left at 1");
    } finally {
      Deno.removeSync(script);
      Deno.removeSync(directory, { recursive: true });
    }
  },
);

testUnless(noKvm ?? whyNoDaemon(), "deno task vhost comes to its end, and shows the table as it changes", async () => {
  const output = await run("examples/vhost/main.ts");
  for (
    const line of [/A disk of 65536 sectors/, /0x100000000-0x140000000 +memfd "hot-added"/, /The daemon is killed/]
  ) {
    assertEquals(line.test(output), true, output);
  }
  assertStringIncludes(output, "A new one has carried out what the guest asked for meanwhile");
});
