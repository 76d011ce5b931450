/**
 * Draws a memory map as text: one row per region, highest priority on top, then what the guest sees and what each
 * partition and DMA target was told. A pure function of plain data, so a map can be drawn from a log file as well as
 * from a live manager.
 *
 * @module
 */

import { DIM, FILL, Line, type Look, MIN_CELL, type Row, Strip } from "./draw_strip.ts";
import { summary } from "./draw_summary.ts";
import { axisOf, rowsOf } from "./rows.ts";
import type { InspectNode } from "../regions/inspect.ts";
import type { InspectGuestMemory } from "../guest/inspect_guest.ts";

/** How {@linkcode drawMemoryMap} draws. */
export interface DrawOptions {
  /** The width to stay within, in columns; 100 when left out, and never less than 60. */
  readonly columns?: number;
  /** Whether ANSI colour is added. The characters are the same with and without. */
  readonly color?: boolean;
}

/** What looks mean, those of the legend. */
export const LEGEND: readonly (readonly [Look, string])[] = [
  ["writable", "writable"],
  ["read-only", "read-only"],
  ["hidden", "hidden by a higher priority"],
  ["hole", "hole"],
  ["unmapped", "region not mapped"],
];

/**
 * Draws a memory map for a terminal.
 *
 * Addresses run from left to right, on an axis that shows every boundary however far apart they are. Where there are
 * more boundaries than fit, the picture continues below; where there are far more, neighbours are counted instead of
 * drawn, so that a map of any size stays a picture. Regions of one priority that belong together by their names (`"ram"`,
 * `"ram vga"`) share a row.
 *
 * @example Usage
 * ```ts
 * import { drawMemoryMap, GuestMemoryManager, MemoryRange } from "membacking";
 *
 * using guest = GuestMemoryManager.create({
 *   maxAddress: 0x100_0000,
 *   ram: [{ ranges: [new MemoryRange(0, 0x80_0000)] }],
 *   x86Legacy: true,
 * });
 * console.log(drawMemoryMap(guest.inspect()));
 * ```
 *
 * @param map What `inspect()` of a `RegionManager` gave, or of a `GuestMemoryManager`: then it is also said what the
 * memory is made of, and how much of the host's it takes.
 */
export function drawMemoryMap(map: InspectNode | InspectGuestMemory, options: DrawOptions = {}): string {
  const columns = Math.max(60, options.columns ?? 100);
  const lines = map.regions.length === 0 ? [new Line().put(0, "The memory map has no regions")] : picture(map, columns);
  if ("ram" in map) {
    lines.push(new Line());
    for (const { key, text } of summary(map, columns)) lines.push(new Line().put(0, key, DIM).put(key.length, text));
  }
  return lines.map((line) => line.toString(options.color ?? false)).join("\n");
}

function picture(map: InspectNode, total: number): Line[] {
  const { layers, results } = rowsOf(map);
  const margin = Math.max(...[...layers, ...results].map((row) => row.label.length)) + 2;
  const columns = total - margin;
  const perStrip = Math.floor((columns - 1) / MIN_CELL);
  const { axis, crowded } = axisOf([...layers, ...results], perStrip);
  const strips = Math.ceil((axis.length - 1) / perStrip);
  const cells = Math.ceil((axis.length - 1) / strips);

  const lines: Line[] = [];
  for (let first = 0; first < axis.length - 1; first += cells) {
    const strip = new Strip(axis.slice(first, first + cells + 1), margin, columns);
    if (first > 0) lines.push(new Line());
    lines.push(...strip.axis());
    for (const row of layers) if (strips === 1 || strip.touches(row)) lines.push(strip.row(row));
    lines.push(strip.rule());
    for (const row of results) lines.push(strip.row(row));
  }
  lines.push(new Line(), ...legend([...layers, ...results], crowded, total));
  return lines;
}

function legend(rows: readonly Row[], crowded: boolean, columns: number): Line[] {
  const used = new Set(rows.flatMap((row) => row.pieces.map((piece) => piece.look)));
  const marks = LEGEND.filter(([look]) => used.has(look)).map(([look, meaning]) =>
    `${FILL[look].repeat(2)} ${meaning}`
  );
  if (crowded) marks.push("small pieces are counted");
  const lines: string[] = [];
  for (const mark of marks) {
    const last = lines.at(-1) ?? "";
    if (last !== "" && last.length + 3 + mark.length <= columns) lines[lines.length - 1] = `${last}   ${mark}`;
    else lines.push(`    ${mark}`);
  }
  return lines.map((text) => new Line().put(0, text, DIM));
}
