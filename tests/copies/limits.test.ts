import { assert, assertEquals, assertGreater } from "@std/assert";
import { TUNABLES } from "../vm/child.ts";

Deno.test("with too few descriptors or kernel mappings, whatever is asked fails by a typed error and leaves nothing", async () => {
  const folder = await Deno.makeTempDir();
  const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "-A", "--no-check", "--v8-flags=--single-threaded"],
      ...[new URL("./limits_child.ts", import.meta.url).pathname, folder],
    ],
    env: { NO_COLOR: "1", GLIBC_TUNABLES: TUNABLES },
  }).output();
  await Deno.remove(folder, { recursive: true });
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  assert(success, text(stderr));
  const report = Object.entries<{ failures: string[]; done: boolean }>(JSON.parse(text(stdout)));
  assertEquals(report.length, 18);
  for (const [what, { failures, done }] of report) {
    assert(done, `${what} never got through`);
    const expected = what.endsWith("descriptors")
      ? ["OsError EMFILE"]
      : ["LimitError", "OsError ENOMEM", "MappingError for OsError ENOMEM"];
    assertEquals(failures.filter((failure) => !expected.includes(failure)), [], what);
  }
  const failed = (what: string) => report.find(([name]) => name === what)?.[1].failures.length ?? 0;
  // Each has something to fail at, and those that map by the piece fail in the middle of it.
  for (
    const what of [
      "restore",
      "restore a copy",
      "rollback of a restored guest",
      "open",
      "flatten",
      "freeze again",
      "save",
    ]
  ) {
    assertGreater(failed(`${what}, descriptors`), 1, what);
  }
  for (const what of ["restore", "rollback of a restored guest", "freeze again", "requests"]) {
    assertGreater(failed(`${what}, mappings`), 5, what);
  }
});
