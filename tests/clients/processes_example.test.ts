import { assertEquals, assertMatch } from "@std/assert";
import config from "../../deno.json" with { type: "json" };
import { kvmTest } from "../support/require.ts";

kvmTest("a VM outlives the process of its disk, whose guest sees an I/O error and then another disk", async () => {
  const [program = "", ...args] = config.tasks.processes.command.split(" ");
  assertEquals(program, "deno");
  const { success, stdout } = await new Deno.Command(Deno.execPath(), {
    args,
    cwd: new URL("../../", import.meta.url),
    stderr: "inherit",
    env: { NO_COLOR: "1" },
  }).output();
  const lines = new TextDecoder().decode(stdout).trim().split("\n");
  assertEquals([success, lines.length], [true, 5]);
  const steps = [
    /^1\. The disk runs in process \d+, this is process \d+$/,
    /^2\. The guest has written all 8 sectors and read them back/,
    /^3\. The disk's process was killed: after \d+ more requests the guest sees an I\/O error, (read|writ)ing sector \d/,
    /^4\. Another one was started, process \d+: sector \d works again, after \d+ requests that failed$/,
    /^5\. The guest was stopped; the image holds what it has written, in every sector$/,
  ];
  steps.forEach((step, i) => assertMatch(lines[i] ?? "", step));
});
