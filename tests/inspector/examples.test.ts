/// <reference lib="dom" />
import { assert, assertEquals } from "@std/assert";
import config from "../../deno.json" with { type: "json" };
import { noKvm, testUnless } from "../support/require.ts";
import { browserTest, closeBrowser, noBrowser } from "./browser.ts";

const ROOT = new URL("../../", import.meta.url);

/** Runs what a task does, with what it may do, until disposed; `printed` waits for a line and gives what was printed. */
function run(command: string, ...args: string[]) {
  const [, ...rest] = command.split(" ");
  const child = new Deno.Command(Deno.execPath(), {
    args: [...rest.toSpliced(1, 0, "--no-prompt", "--no-check"), ...args],
    cwd: ROOT,
    env: { NO_COLOR: "1" },
    stdin: "null",
    stdout: "piped",
    stderr: "inherit",
  }).spawn();
  const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  return {
    child,
    async printed(pattern: RegExp): Promise<string> {
      for (;;) {
        const found = pattern.exec(text);
        if (found !== null) return found[0];
        const { done, value } = await reader.read();
        assert(!done, `${pattern} was not printed:\n${text}`);
        text += value;
      }
    },
    async [Symbol.asyncDispose](): Promise<void> {
      await reader.cancel();
      try {
        child.kill("SIGKILL");
      } catch {
        // It has ended by itself.
      }
      await child.status;
    },
  };
}

const noFirmware = (() => {
  try {
    Deno.statSync("/usr/share/seabios/bios-256k.bin");
    return noKvm;
  } catch {
    return "there is no SeaBIOS: apt-get install seabios";
  }
})();

if (noFirmware !== undefined && noBrowser === undefined) {
  testUnless(noFirmware, "SeaBIOS's PAM and BAR changes can be watched as they come", () => {});
} else {
  browserTest("SeaBIOS's PAM and BAR changes can be watched as they come", async (open) => {
    await using program = run(config.tasks.firmware.command, "--inspect");
    const tab = await open(await program.printed(/http:\S+\/(?=\s)/));
    await program.printed(/The page stays/);
    await tab.page.waitForFunction(() => document.querySelectorAll("#page > div").length > 6);
    // The map at power-on, and what became of it.
    await tab.page.click("#first");
    await tab.page.keyboard.press("c");
    await tab.page.keyboard.press("l");
    await tab.page.waitForFunction(() => document.querySelectorAll("#differences ol li").length > 2);
    const differences = (await tab.page.innerText("#differences")).replaceAll(/\s+/g, " ");
    assert(differences.includes("is shadow RAM"), differences);
    await tab.page.keyboard.press("t");
    // The strips are asked for on their own.
    await tab.page.waitForFunction(() => document.querySelector("#rows")?.textContent?.includes("shadow RAM"));
    const seen = await tab.rows("guest sees");
    assert(
      seen.some(([range, , text]) => range.startsWith("0xc0000-") && text.startsWith("shadow RAM")),
      seen.join("\n"),
    );
    assert(seen.some(([, , text]) => text.startsWith("card memory")), seen.join("\n"));
    assertEquals(tab.complaints, []);
    program.child.kill("SIGINT");
    assertEquals((await program.child.status).code, 0);
  });
}

for (const args of [["--no-kvm"], ["--no-kvm", "--map"]]) {
  browserTest(`the demo can be watched, and its past when it is over: ${args.join(" ")}`, async (open) => {
    await using program = run(config.tasks.demo.command, ...args, "--inspect");
    const tab = await open(await program.printed(/http:\S+\/(?=\s)/));
    await program.printed(/The page stays/);
    await tab.page.waitForFunction(() => document.querySelector("#moment")?.textContent?.includes("gone"));
    await tab.page.keyboard.press("[");
    await tab.page.keyboard.press("[");
    await tab.page.waitForFunction(() => document.querySelector("#moment")?.textContent?.startsWith("the past"));
    await tab.page.waitForFunction(() => document.querySelectorAll("#page > div[data-number]").length > 5);
    assertEquals(tab.complaints, []);
    program.child.kill("SIGINT");
    assertEquals((await program.child.status).code, 0);
  });
}

Deno.test({ name: "the browser of these tests is closed", fn: closeBrowser });
