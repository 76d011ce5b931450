/**
 * Runs a command in this folder on a second KVM: `kvm_amd` in a machine that QEMU emulates in software, which takes no
 * hardware virtualization and works wherever Debian's packages can be downloaded.
 *
 * `deno task nested [--seconds N] [--with PATH]... -- COMMAND...`
 *
 * The command is one for `sh`; `deno` is on the path, `--no-check` is a good idea, and there is no network. What it
 * prints appears here, and its exit status is this program's, except for
 *
 * - 124: it did not end in time (`--seconds`, 600 when left out),
 * - 125: the machine could not be set up, as where a package is missing,
 * - 126: the machine ended without a result, as in a panic; what its kernel said is printed.
 *
 * `--with` brings a file or folder along that is not in the project, at the same path.
 *
 * @module
 */

import { PackageError } from "../../examples/debian/run.ts";
import { runInMachine } from "./machine.ts";

const USAGE = "Usage: deno task nested [--seconds N] [--with PATH]... -- COMMAND...";

/** Exit statuses that are not the command's. */
const TIMED_OUT = 124;
const CANNOT_SET_UP = 125;
const NO_RESULT = 126;

interface Arguments {
  seconds: number;
  with: string[];
  command: string;
}

function parse(args: readonly string[]): Arguments | null {
  const parsed: Arguments = { seconds: 600, with: [], command: "" };
  let i = 0;
  for (; args[i]?.startsWith("--") && args[i] !== "--"; i += 2) {
    const value = args[i + 1];
    if (value === undefined) return null;
    if (args[i] === "--with") parsed.with.push(value);
    else if (args[i] === "--seconds" && Number(value) > 0) parsed.seconds = Number(value);
    else return null;
  }
  if (args[i] === "--") i++;
  parsed.command = args.slice(i).join(" ");
  return parsed.command === "" ? null : parsed;
}

function fail(status: number, message: string): number {
  console.error(`nested: ${message}`);
  return status;
}

async function main(args: readonly string[]): Promise<number> {
  const parsed = parse(args);
  if (parsed === null) return fail(CANNOT_SET_UP, USAGE);
  try {
    const end = await runInMachine(parsed.command, parsed);
    switch (end.kind) {
      case "ended":
        return end.status;
      case "timed-out":
        return fail(TIMED_OUT, `The command did not end within ${parsed.seconds} s: give it more with --seconds`);
      case "no-result":
        return fail(NO_RESULT, `The machine ended without a result. ${end.why}`);
    }
  } catch (error) {
    if (!(error instanceof PackageError)) throw error;
    return fail(CANNOT_SET_UP, error.message);
  }
}

Deno.exitCode = await main(Deno.args);
