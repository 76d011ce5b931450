/**
 * The figures as tables of Markdown, aligned so that they can be read in a terminal as well.
 *
 * @module
 */

import type { ClientRow } from "./clients.ts";
import type { CopyRow } from "./copies.ts";
import { roundTripRows, type RoundTrips } from "./round_trips.ts";
import { type DirtyResults, dirtyTables } from "./dirty.ts";
import type { FirmwareRow } from "./firmware.ts";
import type { Heap } from "./heap.ts";
import type { LiveFigures, LiveRow } from "./live.ts";
import { type Program, PROGRAMS } from "./contest.ts";
import type { Row } from "./rows.ts";
import type { ScaleRow, SlotRow } from "./scale.ts";
import type { StartUp } from "./startup.ts";
import type { Figure, Verdict } from "./stats.ts";
import type { Traced } from "./trace.ts";
import { VHOST_HEAD, type VhostRow, vhostRows } from "./vhost.ts";

/** What was measured of one row. */
export interface RowResult {
  readonly row: Row;
  /** Whether it needs what the machine lacks. */
  readonly skipped?: boolean;
  /** Nanoseconds, by program. */
  readonly times: Partial<Record<Program, Figure>>;
  /** Ours as a multiple of each. */
  readonly ratios: Partial<Record<Program, Figure>>;
  /** Nanoseconds that ours takes more than bare calls. */
  readonly own?: Figure;
  readonly verdict?: Verdict;
}

/** One accessor of guest memory beside a DataView, in nanoseconds. */
export interface Accessor {
  readonly name: string;
  readonly ours: number;
  readonly plain: number;
}

/** Everything one run measured. A string says why there is nothing. */
export interface Results {
  readonly machine: Readonly<Record<string, string>>;
  /** Programs and KVM, as far as there are none, and why. */
  readonly missing: Readonly<Record<string, string>>;
  readonly rows: readonly RowResult[];
  readonly live: readonly LiveRow[] | string;
  readonly scale: readonly ScaleRow[];
  readonly slots: readonly SlotRow[] | string;
  /** `null` where it was not asked for. */
  readonly heap: Heap | string | null;
  readonly accessors: readonly Accessor[] | string;
  readonly clients: readonly ClientRow[] | string;
  readonly copies: readonly CopyRow[] | string;
  /** `null` where they were not asked for. */
  readonly roundTrips: RoundTrips | string | null;
  readonly dirty: DirtyResults | string | null;
  readonly firmware: readonly FirmwareRow[] | string;
  readonly vhost: readonly VhostRow[] | string;
  readonly startUp: readonly StartUp[] | string;
  readonly traced: Readonly<Record<string, Traced | string>> | null;
}

/** Own time at the largest size is to be at most this multiple of that at the smallest. */
export const GROWTH_TARGET = 2;

function number(value: number): string {
  if (!Number.isFinite(value)) return "-";
  const digits = Math.abs(value) < 10 ? 2 : Math.abs(value) < 100 ? 1 : 0;
  const text = value.toFixed(digits);
  return digits === 0 ? text.replace(/\B(?=(\d{3})+$)/g, ",") : text;
}

function spread(figure: Figure | undefined): string {
  if (figure === undefined) return "-";
  const { median, low, high } = figure;
  return `${median.toFixed(2)} (${low.toFixed(2)}-${high.toFixed(2)})`;
}

/** A table of Markdown; the first column and those named are left-aligned. */
function table(head: readonly string[], body: readonly (readonly string[])[], left: readonly string[] = []): string {
  const widths = head.map((_, i) => Math.max(...[head, ...body].map((cells) => cells[i]?.length ?? 0), 3));
  const isLeft = head.map((name, i) => i === 0 || left.includes(name));
  const line = (cells: readonly string[]) =>
    `| ${
      cells.map((cell, i) => isLeft[i] ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0)).join(" | ")
    } |`;
  const rule = widths.map((width, i) => isLeft[i] ? "-".repeat(width) : `${"-".repeat(width - 1)}:`);
  return [line(head), line(rule), ...body.map(line)].join("\n");
}

function contestTable(results: readonly RowResult[], unit: { name: string; size: number }): string {
  const head = ["", ...PROGRAMS.map((name) => `${name}, ${unit.name}`), "ours / bare", "ours / C", "target", "verdict"];
  const body = results.map(({ row, skipped, times, ratios, verdict }) => {
    if (skipped) return [row.title, ...PROGRAMS.map(() => "-"), "-", "-", "", "skipped"];
    const shown = PROGRAMS.map((program) => number((times[program]?.median ?? NaN) / unit.size));
    const target = row.target === undefined ? "" : `${row.target.to} x ${row.target.atMost.toFixed(2)}`;
    return [row.title, ...shown, spread(ratios.bare), spread(ratios.C), target, verdict ?? ""];
  });
  return table(head, body, ["verdict"]);
}

function exitTable(results: readonly RowResult[]): string {
  const head = ["", ...PROGRAMS.map((name) => `${name}, per s`), "ours / bare", "ours / C"];
  return table(
    head,
    results.map(({ row, skipped, times, ratios }) => {
      if (skipped) return [row.title, ...head.slice(1).map(() => "skipped")];
      const shown = PROGRAMS.map((program) => number(Math.round(1e9 / (times[program]?.median ?? NaN) / 100) * 100));
      return [row.title, ...shown, spread(ratios.bare), spread(ratios.C)];
    }),
  );
}

function ownTable(results: readonly RowResult[]): string {
  const body = results.filter(({ own }) => own !== undefined).map(({ row, own }) => [
    row.title,
    row.calls,
    `${number(own!.median / 1e3)} (${number(own!.low / 1e3)}-${number(own!.high / 1e3)})`,
  ]);
  return table(["", "system calls", "ours - bare, us"], body, ["system calls"]);
}

function liveTable(rows: readonly LiveRow[]): string {
  const cells = (size: number, way: string, { latency, p99, exits, died }: LiveFigures) => [
    `${size >= 2 ** 30 ? `${size / 2 ** 30} GiB` : `${size / 2 ** 20} MiB`}, ${way}`,
    `${number(latency.median)} (${number(latency.low)}-${number(latency.high)})`,
    number(p99),
    exits === 0 ? "0" : number(exits),
    died ?? "ran on",
  ];
  return table(
    ["", "switch, us", "slowest in 100, us", "unexpected exits per 1,000", "the guest"],
    rows.flatMap(({ size, ours, torn }) => [
      cells(size, "ours: one mmap", ours),
      cells(size, "original: slot away, mmap, slot back", torn),
    ]),
    ["the guest"],
  );
}

function scaleTable(rows: readonly ScaleRow[]): string {
  const sizes = rows[0]?.sizes ?? [];
  return table(
    ["us per request, targets that do nothing", ...sizes.map((size) => number(size)), "growth", "target", "verdict"],
    rows.map(({ title, time, growth }) => [
      title,
      ...time.map(({ median }) => median.toFixed(2)),
      spread(growth),
      GROWTH_TARGET.toFixed(2),
      growth.median <= GROWTH_TARGET ? "met" : growth.low <= GROWTH_TARGET ? "within spread" : "missed",
    ]),
    ["verdict"],
  );
}

function slotTable(rows: readonly SlotRow[]): string {
  return table(
    [
      "slots in a real VM",
      "ours, us per request",
      "bare",
      "ours / bare",
      "bare, one slot over and over",
      "ours / that",
    ],
    rows.map(({ size, ours, bare, one, ratio, ratioToOne }) => [
      size.toLocaleString("en"),
      number(ours.median),
      number(bare.median),
      spread(ratio),
      number(one.median),
      spread(ratioToOne),
    ]),
  );
}

function accessorTable(accessors: readonly Accessor[]): string {
  return table(
    ["", "ours, ns", "DataView, ns", "ours / DataView"],
    accessors.map(({ name, ours, plain }) => [name, number(ours), number(plain), (ours / plain).toFixed(2)]),
  );
}

function heapTable({ region, mapping }: Heap): string {
  return table(["", "bytes"], [
    ["a mapped region with one mapping", number(Math.round(region))],
    ["a mapping of a region that has many", number(Math.round(mapping))],
  ]);
}

function clientTable(rows: readonly ClientRow[]): string {
  const time = (nanoseconds: number | null) => nanoseconds === null ? "" : number(nanoseconds);
  return table(
    ["ns", "owner", "client in a Worker", "synchronous client", "client in a process"],
    rows.map((
      { title, owner, client, sync, process },
    ) => [title, time(owner), time(client), time(sync), time(process)]),
  );
}

function roundTripTable(roundTrips: RoundTrips): string {
  return table(["", "hot, us", "times the floor", "after 1 ms, us", "times the floor"], roundTripRows(roundTrips));
}

function firmwareTable(rows: readonly FirmwareRow[]): string {
  const cell = (figure: Figure | null) => {
    if (figure === null) return "-";
    return figure.low === figure.high ? String(Number(figure.median.toFixed(2))) : spread(figure);
  };
  return table(
    ["", "ours", "QEMU", "ours / QEMU"],
    rows.map(({ title, unit, ours, qemu, ratio }) => [
      unit === "" ? title : `${title}, ${unit}`,
      cell(ours),
      cell(qemu),
      cell(ratio),
    ]),
  );
}

function startUpTable(rows: readonly StartUp[]): string {
  return table(
    ["", "median, ms", "fastest", "slowest"],
    rows.map(({ title, median, min, max }) => [title, number(median), number(min), number(max)]),
  );
}

function tracedTable(rows: readonly RowResult[], traced: Readonly<Record<string, Traced | string>>): string {
  const body = rows.filter(({ row }) => row.name in traced).map(({ row }) => {
    const calls = traced[row.name]!;
    if (typeof calls === "string") return [row.title, `not counted: ${calls}`, "", ""];
    const verdict = calls.more <= 0 ? "met" : `missed: ${calls.more} more`;
    return [row.title, calls.ours, calls.C === calls.ours ? "the same" : calls.C, verdict];
  });
  return table(["", "ours", "C", "verdict"], body, ["ours", "C", "verdict"]);
}

function copyTable(rows: readonly CopyRow[]): string {
  const body = rows.map(({ title, ours, other, ratio }) => [title, ours, other, ratio]);
  return table(["", "ours", "beside", "ratio"], body, ["beside"]);
}

/** All tables, with a heading each. */
export function report(results: Results): string {
  const {
    machine,
    missing,
    rows,
    live,
    scale,
    slots,
    heap,
    accessors,
    clients,
    copies,
    dirty,
    firmware,
    vhost,
    startUp,
    traced,
  } = results;
  const of = (section: Row["section"]) => rows.filter(({ row }) => row.section === section);
  const parts: [title: string, text: string][] = [];
  const add = <T>(title: string, measured: T | string, draw: (measured: T) => string) =>
    parts.push([title, typeof measured === "string" ? `Not measured: ${measured}.` : draw(measured)]);

  parts.push(["Machine", Object.entries(machine).map(([name, value]) => `- ${name}: ${value}`).join("\n")]);
  if (of("requests").length > 0) {
    parts.push(["Requests", contestTable(of("requests"), { name: "us", size: 1e3 })]);
    if (rows.some(({ own }) => own !== undefined)) parts.push(["What the manager adds", ownTable(of("requests"))]);
  }
  if (of("memory").length > 0) parts.push(["Guest memory", contestTable(of("memory"), { name: "ns", size: 1 })]);
  if (of("guest").length > 0) parts.push(["Exits", exitTable(of("guest"))]);
  if (accessors.length > 0) add("Accessors", accessors, accessorTable);
  if (live.length > 0) add("Switching under a running guest", live, liveTable);
  if (scale.length > 0) parts.push(["Scale: the manager's own time", scaleTable(scale)]);
  if (slots.length > 0) add("Scale: slots", slots, slotTable);
  if (heap !== null) add("Heap", heap, heapTable);
  if (copies.length > 0) add("Copies of memory", copies, copyTable);
  if (clients.length > 0) add("Clients in other threads", clients, clientTable);
  if (results.roundTrips !== null) add("Requests from other threads and processes", results.roundTrips, roundTripTable);
  if (dirty !== null) add("Written pages", dirty, dirtyTables);
  if (firmware.length > 0) add("Firmware", firmware, firmwareTable);
  if (vhost.length > 0) {
    add("Devices in other processes", vhost, (rows) => table([...VHOST_HEAD], vhostRows(rows), ["verdict"]));
  }
  if (startUp.length > 0) add("Start-up", startUp, startUpTable);
  if (traced !== null) parts.push(["System calls", tracedTable(rows, traced)]);

  const lines = parts.flatMap(([title, text]) => [`### ${title}`, "", text, ""]);
  for (const [program, why] of Object.entries(missing)) lines.push(`No figures with ${program}: ${why}.`, "");
  lines.push(verdicts(results));
  return lines.join("\n");
}

/** How many targets were met. */
function verdicts({ rows, scale }: Results): string {
  const count: Record<Verdict, number> = { "met": 0, "within spread": 0, "missed": 0 };
  for (const { verdict } of rows) if (verdict !== undefined) count[verdict]++;
  for (const { growth } of scale) {
    count[growth.median <= GROWTH_TARGET ? "met" : growth.low <= GROWTH_TARGET ? "within spread" : "missed"]++;
  }
  return `Targets: ${count.met} met, ${count["within spread"]} within the spread, ${count.missed} missed.`;
}
