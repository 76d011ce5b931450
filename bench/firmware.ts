/**
 * The same firmware on the same KVM, by the VMM in examples/firmware and by QEMU: how long it takes to boot, and what
 * becomes of the memory slots meanwhile.
 *
 *   deno run -A bench/firmware.ts [ROUNDS]
 *
 * Both machines have 128 MiB of RAM, one CPU, no screen and no disk, and boot until the firmware says that there is
 * nothing to boot. The time is that from its first line to its last. QEMU says what it does to slots by its trace event
 * `kvm_set_user_memory`.
 *
 * @module
 */

import { MemoryRange, OsError } from "membacking";
import { FIRMWARE, Machine, RAM } from "../examples/firmware/machine.ts";
import { SetupError } from "../examples/pc/setup_error.ts";
import { type Figure, figure, ratio } from "./stats.ts";

/** One boot. */
interface Boot {
  readonly millis: number;
  /** All changes of slots. */
  readonly changes: number;
  /** The deletes among them. */
  readonly deletes: number;
  /** The deletes of slots with the RAM that the guest always has: below the VGA window, or above 1 MiB. */
  readonly ramDeletes: number;
}

/** One line of the comparison. */
export interface FirmwareRow {
  /** What is compared. */
  readonly title: string;
  /** The unit of the figures, or nothing for numbers. */
  readonly unit: "s" | "";
  /** The VMM of the example. */
  readonly ours: Figure;
  /** QEMU; `null` where it is not installed. */
  readonly qemu: Figure | null;
  /** Ours divided by QEMU's, round by round. */
  readonly ratio: Figure | null;
}

const FIRST = "SeaBIOS (version";
const LAST = "No bootable device.";
const ALWAYS = [new MemoryRange(0, 0xa_0000), new MemoryRange(0x10_0000, RAM)];

function isRam(range: MemoryRange): boolean {
  return ALWAYS.some((ram) => ram.overlaps(range));
}

async function bootOurs(): Promise<Boot> {
  const deleted: MemoryRange[] = [];
  let [changes, first, last] = [0, NaN, NaN];
  const nothing = () => {};
  using machine = new Machine({
    events: {
      onLog(line) {
        if (Number.isNaN(first) && line.startsWith(FIRST)) first = performance.now();
        if (line.startsWith(LAST)) last = performance.now();
      },
      onChange({ slots }) {
        changes += slots.made.length + slots.deleted.length;
        deleted.push(...slots.deleted);
      },
      onFinding: nothing,
      onRefused: nothing,
    },
  });
  const { why } = await machine.boot();
  if (why !== "done") throw new Error(`The firmware did not boot: ${why}`);
  return { millis: last - first, changes, deletes: deleted.length, ramDeletes: deleted.filter(isRam).length };
}

/** A file that goes with the result. */
function temporaryFile(): Disposable & { readonly path: string } {
  const path = Deno.makeTempFileSync();
  return { path, [Symbol.dispose]: () => Deno.removeSync(path) };
}

async function bootQemu(): Promise<Boot> {
  using trace = temporaryFile();
  const process = new Deno.Command("qemu-system-x86_64", {
    args: [
      ...["-accel", "kvm", "-machine", "pc", "-m", `${RAM / 2 ** 20}`, "-bios", FIRMWARE, "-nodefaults"],
      ...[
        "-display",
        "none",
        "-chardev",
        "stdio,id=log,signal=off",
        "-device",
        "isa-debugcon,iobase=0x402,chardev=log",
      ],
      ...["-trace", "enable=kvm_set_user_memory", "-D", trace.path],
    ],
    stdin: "null",
    stdout: "piped",
    stderr: "null",
  }).spawn();
  let [text, first, last] = ["", NaN, NaN];
  for await (const chunk of process.stdout.pipeThrough(new TextDecoderStream())) {
    text += chunk;
    if (Number.isNaN(first) && text.includes(FIRST)) first = performance.now();
    if (!text.includes(LAST)) continue;
    last = performance.now();
    process.kill("SIGTERM"); // it flushes the trace
    break;
  }
  await process.status;
  if (Number.isNaN(last)) throw new Error(`QEMU ended early, after: ${text.slice(-200)}`);
  return { millis: last - first, ...slotChanges(await Deno.readTextFile(trace.path)) };
}

/** Reads lines such as `kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0xa0000 ua=0x7f0000000000 ret=0`. */
function slotChanges(trace: string): Omit<Boot, "millis"> {
  const slots = new Map<string, MemoryRange>();
  const deleted: MemoryRange[] = [];
  let changes = 0;
  for (const [, slot = "", gpa, size] of trace.matchAll(/Slot#(\d+) .*gpa=(0x[0-9a-f]+) size=(0x[0-9a-f]+)/g)) {
    changes++;
    const old = slots.get(slot);
    if (Number(size) > 0) slots.set(slot, MemoryRange.of(Number(gpa), Number(size)));
    else if (old !== undefined) deleted.push(old);
  }
  return { changes, deletes: deleted.length, ramDeletes: deleted.filter(isRam).length };
}

async function hasQemu(): Promise<boolean> {
  try {
    return (await new Deno.Command("qemu-system-x86_64", { args: ["--version"] }).output()).success;
  } catch {
    return false;
  }
}

/** Boots both in turns, `rounds` times; or says why nothing can be booted. */
export async function firmwareRows(rounds = 3): Promise<readonly FirmwareRow[] | string> {
  const withQemu = await hasQemu();
  const ours: Boot[] = [];
  const qemu: Boot[] = [];
  try {
    for (let round = 0; round < rounds; round++) {
      const turns = [
        async () => ours.push(await bootOurs()),
        async () => withQemu && qemu.push(await bootQemu()),
      ];
      for (const boot of round % 2 === 0 ? turns : turns.reverse()) await boot();
    }
  } catch (error) {
    if (error instanceof SetupError || error instanceof OsError) return error.message;
    throw error;
  }
  const row = (title: string, unit: FirmwareRow["unit"], value: (boot: Boot) => number): FirmwareRow => ({
    title,
    unit,
    ours: figure(ours.map(value)),
    qemu: withQemu ? figure(qemu.map(value)) : null,
    ratio: withQemu ? ratio(ours.map(value), qemu.map(value)) : null,
  });
  return [
    row("boot, first line to last", "s", ({ millis }) => millis / 1000),
    row("changes of memory slots", "", ({ changes }) => changes),
    row("deletes among them", "", ({ deletes }) => deletes),
    row("deletes of slots with RAM below 640 KiB or above 1 MiB", "", ({ ramDeletes }) => ramDeletes),
  ];
}

if (import.meta.main) {
  const rounds = Number(Deno.args[0] ?? 3);
  const rows = await firmwareRows(rounds);
  if (typeof rows === "string") {
    console.error(rows);
    Deno.exit(1);
  }
  const spread = ({ median, low, high }: Figure) => `${median.toFixed(2)} (${low.toFixed(2)}-${high.toFixed(2)})`;
  const cell = (figure: Figure | null) => {
    if (figure === null) return "not installed";
    return figure.low === figure.high ? String(Number(figure.median.toFixed(2))) : spread(figure);
  };
  const line = (...cells: string[]) => console.log(cells.map((text, i) => text.padEnd(i === 0 ? 56 : 20)).join(""));
  line("medians (quartiles)", "ours", "QEMU", "ratio");
  for (const { title, unit, ours, qemu, ratio } of rows) {
    line(unit === "" ? title : `${title}, ${unit}`, cell(ours), cell(qemu), cell(ratio));
  }
}
