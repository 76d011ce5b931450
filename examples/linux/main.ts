/**
 * Boots Debian's unmodified cloud kernel to a program in user space, with its memory run by membacking.
 *
 * `deno task linux [--prepare]`
 *
 * Shows the console as it is written, then the memory map, the exits, the slot changes and the times. Where the KVM of
 * this machine cannot run an ordinary kernel, it says so and does all of it inside a second one. `--prepare` only makes
 * what is needed, and prints the folder with it.
 *
 * @module
 */

import { OsError } from "membacking";
import { PackageError } from "../debian/run.ts";
import { SetupError } from "../pc/setup_error.ts";
import { GuestShell } from "./guest_shell.ts";
import { whyNoLinux } from "./host.ts";
import { LinuxMachine } from "./machine.ts";
import { prepareLinux } from "./prepare.ts";
import { report } from "./report.ts";

/** What is looked at in user space. */
const COMMANDS = ["uname -srvm", "grep -c ^processor /proc/cpuinfo", "free -m", "grep RAM /proc/iomem"] as const;

const ROOT = new URL("../../", import.meta.url);

async function boot(folder: string): Promise<boolean> {
  const shell = new GuestShell((text) => machine.type(text));
  using machine = new LinuxMachine({
    from: { folder },
    onByte(byte) {
      Deno.stdout.writeSync(new Uint8Array([byte]));
      shell.take(byte);
    },
  });
  const start = performance.now();
  const running = machine.run().finally(() => shell.close("unexpectedly"));
  running.catch(() => {}); // seen below
  await shell.ready();
  const userSpace = performance.now() - start;
  for (const command of COMMANDS) {
    Deno.stdout.writeSync(new TextEncoder().encode(`# ${command}\n`));
    await shell.run(command);
  }
  const map = machine.memory.guest.inspect();
  shell.send("poweroff -f");
  const end = await running;
  for (const line of report({ map, end, userSpace, slots: machine.takeSlotChanges() })) console.log(line);
  return end.why === "off";
}

/** The same in the second host, where the cache of this one is at the same place. */
async function bootNested(folder: string): Promise<boolean> {
  const { success } = await new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "-A", "tests/nested/main.ts", "--seconds", "120", "--with", folder, "--"],
      ...["deno", "run", "-A", "--no-check", "examples/linux/main.ts"],
    ],
    cwd: ROOT,
  }).spawn().status;
  return success;
}

/** Returns whether all went well. */
async function main(args: readonly string[]): Promise<boolean> {
  const folder = prepareLinux();
  if (args[0] === "--prepare") {
    console.log(folder);
    return true;
  }
  const why = whyNoLinux();
  if (why === null) return await boot(folder);
  console.log(`It runs in a machine with a second KVM, since ${why}`);
  return await bootNested(folder);
}

try {
  if (!await main(Deno.args)) Deno.exitCode = 1;
} catch (error) {
  // What a user can do something about is said without a stack.
  const known = error instanceof SetupError || error instanceof PackageError || error instanceof OsError;
  if (!known) throw error;
  console.error(error.message);
  Deno.exitCode = 1;
}
