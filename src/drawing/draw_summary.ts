/**
 * Says in a few lines what guest memory is made of and what it takes. A pure function of plain data.
 *
 * @module
 */

import type { MemoryUsage } from "../../ffi/host/smaps.ts";
import type { InspectDeviceMemory } from "../guest/device_memory.ts";
import type { InspectGuestMemory, InspectRamBacking } from "../guest/inspect_guest.ts";

/** One line: what it is about, padded, and what there is to say. */
export interface SummaryLine {
  /** What it is about. */
  readonly key: string;
  /** What there is to say. */
  readonly text: string;
}

const KEY_WIDTH = 13;
const MAX_LINES = 8;
const NAME_WIDTH = 20;

/** What guest memory is made of and takes, in lines of at most `columns` characters. */
export function summary({ ram, devices, usage }: InspectGuestMemory, columns: number): SummaryLine[] {
  return [
    ...section("ram", ram.map(ramText)),
    ...section("devices", devices.map(deviceText)),
    ...section("in use", usage === null ? ["the kernel does not tell"] : usageTexts(usage)),
  ].map(({ key, text }) => ({ key, text: shortened(text, columns - KEY_WIDTH) }));
}

function section(name: string, texts: readonly string[]): SummaryLine[] {
  const shown = texts.length > MAX_LINES ? texts.slice(0, MAX_LINES - 1) : texts;
  const lines = shown.length < texts.length ? [...shown, `and ${texts.length - shown.length} more`] : shown;
  return lines.map((text, i) => ({ key: `    ${i === 0 ? name : ""}`.padEnd(KEY_WIDTH), text }));
}

function ramText({ name, ranges, backing, copyOnWrite, ...options }: InspectRamBacking): string {
  const bytes = ranges.reduce((sum, range) => sum + lengthOf(range), 0);
  const { hugepageSize, transparentHugepages, hostNumaNode, prefetch } = options;
  const where = ranges.length > 2 ? `${ranges[0]} and ${ranges.length - 1} more` : ranges.join(", ");
  return [
    `${shortened(name, NAME_WIDTH)}: ${size(bytes)} ${
      backing === "existing" ? "of an existing file" : backing
    } at ${where}`,
    ...(copyOnWrite ? ["copy-on-write"] : []),
    ...(hugepageSize === null ? [] : [`pages of ${size(hugepageSize)}`]),
    ...(transparentHugepages === null ? [] : [`${transparentHugepages ? "" : "no "}transparent huge pages`]),
    ...(hostNumaNode === null ? [] : [`host node ${hostNumaNode}`]),
    ...(prefetch ? ["prefetched"] : []),
  ].join(", ");
}

function deviceText({ name, length, gpa, mappings }: InspectDeviceMemory): string {
  const mapped = mappings.reduce((sum, { range }) => sum + lengthOf(range), 0);
  const where = gpa === null ? ", not in the guest" : ` at 0x${gpa.toString(16)}`;
  const what = mapped === 0 ? "nothing" : mapped === length ? "all of it" : size(mapped);
  return `${shortened(name, NAME_WIDTH)}: ${size(length)}${where}, ${what} mapped`;
}

function usageTexts(usage: MemoryUsage): string[] {
  const total = usage.resident + usage.hugetlb;
  const kinds = amounts([usage.private, "private"], [usage.shared, "shared"], [usage.hugetlb, "in hugetlb pages"]);
  const ofThese = amounts([usage.transparentHuge, "in transparent huge pages"], [usage.locked, "locked"]);
  return [
    total === 0 ? "nothing yet" : kinds.length === 1 ? kinds.join() : `${size(total)}: ${kinds.join(", ")}`,
    ...(ofThese.length === 0 ? [] : [`of these ${ofThese.join(", ")}`]),
    ...(usage.swapped === 0 ? [] : [`and ${size(usage.swapped)} swapped out`]),
  ];
}

function amounts(...all: readonly (readonly [number, string])[]): string[] {
  return all.filter(([bytes]) => bytes > 0).map(([bytes, what]) => `${size(bytes)} ${what}`);
}

function lengthOf(range: string): number {
  const [start, end] = range.split("-").map(Number);
  return (end ?? 0) - (start ?? 0);
}

function shortened(text: string, width: number): string {
  return text.length > width ? `${text.slice(0, width - 1)}…` : text;
}

/** A length in the largest unit that is short: `4K`, `640K`, `1M`, `~3.4G`. */
export function size(bytes: number): string {
  let unit = 0;
  while (bytes >= 1024 && unit < UNITS.length - 1) {
    bytes /= 1024;
    unit++;
  }
  if (Number.isInteger(bytes)) return `${bytes}${UNITS[unit]}`;
  const rounded = bytes < 10 ? bytes.toFixed(1) : bytes.toFixed(0);
  return `~${rounded}${UNITS[unit]}`;
}
const UNITS = ["", "K", "M", "G", "T", "P"];
