/**
 * Boots unmodified firmware, with its memory run by membacking.
 *
 * `deno task firmware [--floppy FILE | --checks] [--firmware FILE] [--inspect]`
 *
 * It needs --allow-ffi, and --allow-read for the modules that the vCPU's thread loads, which Deno wants for a Worker's.
 * Firmware, floppy and /dev/kvm are opened through libc. `--inspect`, which shows the memory in a browser as it changes,
 * needs --allow-net for the address it is served at.
 *
 * @module
 */

import { Mappable, OsError } from "membacking";
import { INSPECT, inspect, linger } from "../inspect.ts";
import { bootFloppy } from "./boot_sector.ts";
import { Machine, type MemoryChange } from "./machine.ts";
import { Screen } from "./screen.ts";
import { SetupError } from "../pc/setup_error.ts";

const USAGE = "Usage: deno task firmware [--floppy FILE | --checks] [--firmware FILE] [--inspect]";

interface Arguments {
  firmware?: string;
  floppy?: Uint8Array;
  inspect: boolean;
}

function parse(args: readonly string[]): Arguments {
  const parsed: Arguments = { inspect: false };
  for (let i = 0; i < args.length; i++) {
    const file = args[i + 1];
    if (args[i] === "--checks") {
      parsed.floppy = bootFloppy();
    } else if (args[i] === INSPECT) {
      parsed.inspect = true;
    } else if (args[i] === "--floppy" && file !== undefined) {
      parsed.floppy = readFile(file);
      i++;
    } else if (args[i] === "--firmware" && file !== undefined) {
      parsed.firmware = file;
      i++;
    } else {
      throw new SetupError(`Cannot make sense of "${args[i]}"\n${USAGE}`);
    }
  }
  return parsed;
}

/** By libc, for which --allow-ffi is enough. */
function readFile(path: string): Uint8Array {
  using file = Mappable.open(path);
  const bytes = new Uint8Array(file.size);
  file.read(0, bytes);
  return bytes;
}

try {
  const changes: MemoryChange[] = [];
  const screen = new Screen((line) => console.log(line), Deno.stdout.isTerminal() && !Deno.noColor);
  const { inspect: isInspected, ...parts } = parse(Deno.args);
  using machine = new Machine({
    ...parts,
    events: {
      onLog: (line) => screen.onLog(line),
      onFinding: (line) => screen.onFinding(line),
      onRefused: (why) => screen.onRefused(why),
      onChange(change) {
        changes.push(change);
        screen.onChange(change);
      },
    },
  });
  using _inspector = isInspected ? await inspect(machine.memory.guest, "SeaBIOS") : null;
  const end = await machine.boot();
  screen.end(machine.memory.guest.inspect(), end, changes);
  if (end.crash !== null) Deno.exitCode = 1;
  if (isInspected) await linger();
} catch (error) {
  // What a user can do something about is said without a stack.
  if (!(error instanceof SetupError || error instanceof OsError)) throw error;
  console.error(error.message);
  Deno.exitCode = 1;
}
