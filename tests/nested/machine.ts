/**
 * The machine that has the second KVM, from its start to the end of one command in it.
 *
 * @module
 */

import { cached, exists } from "../../examples/debian/cache.ts";
import { CpioWriter } from "../../examples/debian/cpio.ts";
import {
  cloudKernelPackage,
  findFile,
  unpackPackages,
  updateLists,
  withMissingDependencies,
} from "../../examples/debian/packages.ts";
import { PackageError } from "../../examples/debian/run.ts";
import { addFoundation, BAD_CLOCK, foundationName } from "./foundation.ts";
import { addCommand } from "./luggage.ts";

/** How the machine ended. */
export type MachineEnd =
  | { readonly kind: "ended"; readonly status: number }
  | { readonly kind: "timed-out" }
  | { readonly kind: "no-result"; readonly why: string };

/** It was not worth going on. */
interface BadClock {
  readonly kind: "bad-clock";
  readonly how: string;
}

/** What of a run can be chosen. */
export interface MachineOptions {
  /** How long it may take, in seconds, without what it takes to download and pack. */
  readonly seconds: number;
  /** Files and folders to bring along. */
  readonly with: readonly string[];
}

/**
 * A processor with AMD's virtualization and nested paging. Without cmpxchg16b, which QEMU before 8.1 emulates by
 * stopping the world; and with what Deno's binary needs.
 */
const CPU = "qemu64,+svm,+npt,+ssse3,+sse4.1,+sse4.2,+popcnt,-cx16";

/**
 * One processor: with several, QEMU before 8.1 runs stale translations of kernel code that KVM patches when the first
 * VM of a machine comes or the last one goes, and the machine freezes.
 */
const PROCESSORS = 1;
const MEMORY_MIB = 2048;

/** At a panic, end at once; and do not look for the speed of a clock that is exact by definition. */
const KERNEL_LINE = "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable clocksource=tsc";

/**
 * How often it is tried. Linux measures the speed of its clock when it starts, by comparing two clocks, and where the host
 * lets QEMU wait between the two, the clock runs many times too fast from then on.
 */
const ATTEMPTS = 5;

/** Runs `command` in a copy of the working directory; what it prints goes to standard output as it comes. */
export async function runInMachine(command: string, options: MachineOptions): Promise<MachineEnd> {
  const packages = cached("nested-packages", download);
  const foundation = cached(foundationName(), (path) => pack(path, (cpio) => addFoundation(cpio, packages)));
  const folder = Deno.makeTempDirSync({ prefix: "nested-" });
  try {
    const initrd = `${folder}/initrd`;
    Deno.copyFileSync(foundation, initrd);
    pack(initrd, (cpio) => addCommand(cpio, Deno.cwd(), command, options.with), { append: true });
    for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
      const end = await boot(packages, folder, initrd, options.seconds);
      if (end.kind !== "bad-clock") return end;
      console.error(
        `nested: The machine's clock runs too fast, as it may where the host is busy: once more (${end.how})`,
      );
    }
    return {
      kind: "no-result",
      why: `Its clock ran too fast, ${ATTEMPTS} times: try again when less is going on here`,
    };
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

/** QEMU, a kernel with its modules, a shell, and the firmware that QEMU and some tests boot. */
function download(folder: string): void {
  console.error("nested: Downloading QEMU and a kernel, once");
  updateLists();
  const qemu = ["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];
  unpackPackages(withMissingDependencies(qemu), folder);
  // By themselves: what else they would need is there for an installed system.
  unpackPackages(["busybox-static", cloudKernelPackage()], folder);
}

function pack(path: string, add: (cpio: CpioWriter) => void, options: { append?: boolean } = {}): void {
  using file = Deno.openSync(path, { create: true, write: true, append: options.append ?? false });
  const cpio = new CpioWriter((bytes) => {
    for (let done = 0; done < bytes.length;) done += file.writeSync(bytes.subarray(done));
  });
  add(cpio);
  cpio.end();
}

async function boot(
  packages: string,
  folder: string,
  initrd: string,
  seconds: number,
): Promise<MachineEnd | BadClock> {
  const files = { console: `${folder}/console`, status: `${folder}/status` };
  const libraries = `${packages}/usr/lib/x86_64-linux-gnu`;
  const qemu = new Deno.Command(`${packages}/usr/bin/qemu-system-x86_64`, {
    args: [
      ...["-L", `${packages}/usr/share/qemu`, "-L", `${packages}/usr/share/seabios`],
      ...["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-no-reboot"],
      ...["-machine", "pc", "-accel", "tcg", "-smp", `${PROCESSORS}`, "-m", `${MEMORY_MIB}`, "-cpu", CPU],
      ...["-kernel", findFile(`${packages}/boot`, /^vmlinuz-/), "-initrd", initrd],
      ...["-append", `${KERNEL_LINE} nested.started=${Math.floor(Date.now() / 1000)}`],
      // One line for the kernel, one for what the command prints, one for its status.
      ...["-serial", `file:${files.console}`, "-serial", "stdio", "-serial", `file:${files.status}`],
    ],
    env: {
      LD_LIBRARY_PATH: `${libraries}:${packages}/lib/x86_64-linux-gnu`,
      QEMU_MODULE_DIR: `${libraries}/qemu`,
    },
    stdin: "null",
    stdout: "inherit",
    stderr: "piped",
  }).spawn();
  let timedOut = false;
  const timer = setTimeout(() => {
    timedOut = true;
    qemu.kill("SIGKILL");
  }, seconds * 1000);
  const stop = () => qemu.kill("SIGKILL");
  for (const signal of ["SIGINT", "SIGTERM"] as const) Deno.addSignalListener(signal, stop);
  try {
    const { success, stderr } = await qemu.output();
    if (timedOut) return { kind: "timed-out" };
    const said = readIfThere(files.status);
    if (said.startsWith(BAD_CLOCK)) return { kind: "bad-clock", how: said.slice(BAD_CLOCK.length).trim() };
    const status = said.match(/^\d+/)?.[0];
    if (status !== undefined) return { kind: "ended", status: Number(status) };
    const complaint = new TextDecoder().decode(stderr).trim();
    if (!exists(files.console)) throw new PackageError(`QEMU does not start: ${complaint}`);
    return { kind: "no-result", why: success ? lastWords(readIfThere(files.console)) : `QEMU says: ${complaint}` };
  } finally {
    clearTimeout(timer);
    for (const signal of ["SIGINT", "SIGTERM"] as const) Deno.removeSignalListener(signal, stop);
  }
}

/** What a kernel said at the end; from the panic on, if it was one. */
function lastWords(console: string): string {
  const lines = console.trimEnd().split(/\r?\n/);
  const panic = lines.findIndex((line) => /Kernel panic|Oops|BUG:/.test(line));
  return `Its kernel said:\n${lines.slice(panic === -1 ? -25 : panic).join("\n")}`;
}

function readIfThere(path: string): string {
  return exists(path) ? Deno.readTextFileSync(path) : "";
}
