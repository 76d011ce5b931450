import { assert, assertEquals } from "@std/assert";
import { kvmTest } from "../support/require.ts";

const ROOT = new URL("../../", import.meta.url);

async function precopy(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-prompt", "--allow-ffi", "--allow-read=.", "examples/precopy/main.ts", ...args],
    cwd: ROOT,
    env: { NO_COLOR: "1" },
  }).output();
  const printed = new TextDecoder().decode(stdout);
  assertEquals(code, 0, printed + new TextDecoder().decode(stderr));
  return printed;
}

kvmTest("deno task precopy moves the memory of a running machine, and draws what was written where", async () => {
  const printed = await precopy("--memory", "16");
  assert(printed.includes("Both memories are equal"), printed);
  assert(/^round +0 █+ +4,096 of +4,096 pages/m.test(printed), printed);
  assert(/^round last/m.test(printed), printed);
  assert(/^0x00300000 \|[░▒▓█ ]{64}\|$/m.test(printed), printed);
}, "MANUAL_DIRTY_LOG_PROTECT2");
