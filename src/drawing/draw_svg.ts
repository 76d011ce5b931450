/**
 * Draws a memory map as an SVG picture, for documents. A pure function of plain data, as `drawMemoryMap` is.
 *
 * @module
 */

import type { InspectGuestMemory } from "../guest/inspect_guest.ts";
import type { InspectNode } from "../regions/inspect.ts";
import { LEGEND } from "./draw.ts";
import { type Look, type Row, type Run, runsIn } from "./draw_strip.ts";
import { size, summary } from "./draw_summary.ts";
import { axisOf, HUES, rowsOf } from "./rows.ts";

/** How {@linkcode drawMemoryMapSvg} draws. */
export interface SvgOptions {
  /** The width in pixels; 960 when left out, and never less than 400. */
  readonly width?: number;
  /** What the picture is called, for those who cannot see it; `"Memory map"` when left out. */
  readonly title?: string;
}

const ROW = 24;
const GAP = 6;
const AXIS = 46;
const MARGIN = 12;
/** The width of a character of 11 pixels, and of an address. */
const CHAR = 6.3;
const LEAST_CELL = 46;
const LINE = 18;
/** The hues of families, in degrees, in the order of `HUES`. */
const DEGREES: readonly number[] = [250, 75, 330, 145, 195, 30];

const STYLE = `
.mb{--ground:#fff;--text:#1b1e24;--faint:#5c6470;--line:#d9dce1;--lane:#f3f4f6;--l:85%;--c:.075;--il:50%}
@media(prefers-color-scheme:dark){.mb{--ground:#16181c;--text:#e4e6ea;--faint:#9aa3b0;--line:#343a44;--lane:#1d2026;--l:47%;--c:.095;--il:78%}}
.mb text{font:11px ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace;fill:var(--text)}
.mb .f{fill:var(--faint)}.mb .g{fill:var(--ground)}.mb .n{fill:var(--lane)}.mb .l{stroke:var(--line)}
.mb .s{stroke:var(--faint);stroke-width:2}.mb .m{text-anchor:middle}
.mb .w{fill:oklch(var(--l) var(--c) var(--h))}.mb .i{stroke:oklch(var(--il) .12 var(--h));fill:none}
.mb .p{stroke:oklch(var(--il) .12 var(--h));stroke-width:2.4;stroke-opacity:.5}.mb .d{fill:oklch(var(--il) .12 var(--h))}
${DEGREES.map((hue, i) => `.mb .h${i}{--h:${hue}}`).join("")}.mb .hx{--h:250;--c:0}`;

/**
 * Draws a memory map as an SVG document: the same picture as `drawMemoryMap` draws as text, light or dark as its reader
 * has it, and with a pattern for each thing, so that nothing is told by its colour alone.
 *
 * @example A picture for a document
 * ```ts
 * import { drawMemoryMapSvg, GuestMemoryManager, MemoryRange } from "membacking";
 *
 * using guest = GuestMemoryManager.create({
 *   maxAddress: 0x100_0000,
 *   ram: [{ ranges: [new MemoryRange(0, 0x80_0000)] }],
 *   x86Legacy: true,
 * });
 * const svg = drawMemoryMapSvg(guest.inspect());
 * console.assert(svg.startsWith("<svg ") && svg.endsWith("</svg>\n"));
 * ```
 *
 * @param map What `inspect()` of a `RegionManager` gave, or of a `GuestMemoryManager`: then it is also said what the
 * memory is made of.
 */
export function drawMemoryMapSvg(map: InspectNode | InspectGuestMemory, options: SvgOptions = {}): string {
  const width = Math.max(400, Math.floor(options.width ?? 960));
  const body: string[] = [];
  let y = MARGIN;
  if (map.regions.length === 0) {
    body.push(text(MARGIN, y + 12, "The memory map has no regions"));
    y += LINE;
  } else y = picture(body, map, width, y);
  if ("ram" in map) {
    y += 6;
    for (const { key, text: said } of summary(map, Math.floor((width - 2 * MARGIN) / CHAR))) {
      body.push(text(MARGIN, y + 12, key.trim(), "f"), text(MARGIN + 80, y + 12, said));
      y += LINE;
    }
  }
  const height = y + MARGIN;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" class="mb" width="${width}" height="${height}" ` +
    `viewBox="0 0 ${width} ${height}" role="img">`,
    `<title>${escaped(options.title ?? "Memory map")}</title><style>${STYLE}</style>${PATTERNS}`,
    `<rect class="g" width="${width}" height="${height}"/>`,
    ...body,
    "</svg>\n",
  ].join("\n");
}

/** Stripes and dots in each hue: a pattern cannot take the colour of what it fills. */
const PATTERNS = `<defs>${
  [...DEGREES.keys(), "x"].map((i) =>
    `<pattern id="mb-r${i}" class="h${i}" width="8" height="8" patternUnits="userSpaceOnUse">` +
    `<path class="p" d="M-1 9L9-1M-5 5L5-5M3 13L13 3"/></pattern>` +
    `<pattern id="mb-d${i}" class="h${i}" width="6" height="6" patternUnits="userSpaceOnUse">` +
    `<circle class="d" cx="1.6" cy="1.6" r=".9"/><circle class="d" cx="4.6" cy="4.6" r=".9"/></pattern>`
  ).join("")
}</defs>`;

function picture(body: string[], map: InspectNode, width: number, top: number): number {
  const { layers, results } = rowsOf(map);
  const labels = Math.max(...[...layers, ...results].map(({ label }) => label.length));
  const left = MARGIN + Math.ceil(labels * CHAR) + 10;
  const room = width - left - MARGIN;
  const perStrip = Math.max(1, Math.floor(room / LEAST_CELL));
  const { axis, crowded } = axisOf([...layers, ...results], perStrip);
  const strips = Math.ceil((axis.length - 1) / perStrip);
  const cells = Math.ceil((axis.length - 1) / strips);
  let y = top;
  for (let first = 0; first < axis.length - 1; first += cells) {
    const strip = new Strip(axis.slice(first, first + cells + 1), left, room);
    const rows = layers.filter((row) => strips === 1 || strip.touches(row));
    y = strip.draw(body, rows, results, y) + 8;
  }
  return legend(body, [...layers, ...results], crowded, width, y);
}

/** A part of the axis with all rows below it. */
class Strip {
  /** Where each boundary is. */
  readonly #xs: readonly number[];

  constructor(readonly cuts: readonly number[], left: number, room: number) {
    const weights = cuts.slice(1).map((cut, i) => Math.log2(cut - (cuts[i] ?? 0)) - 9);
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    const spare = Math.max(0, room - weights.length * LEAST_CELL);
    const xs = [left];
    let sum = 0;
    for (const [i, weight] of weights.entries()) {
      sum += weight;
      xs.push(Math.round(left + (i + 1) * Math.min(LEAST_CELL, room / weights.length) + spare * sum / total));
    }
    this.#xs = xs;
  }

  touches(row: Row): boolean {
    return !runsIn(row, this.cuts).next().done;
  }

  draw(body: string[], layers: readonly Row[], results: readonly Row[], top: number): number {
    const xs = this.#xs;
    const bottom = top + AXIS + (layers.length + results.length) * (ROW + GAP) + 8;
    this.#axis(body, top, bottom);
    let y = top + AXIS + GAP;
    for (const rows of [layers, results]) {
      for (const row of rows) {
        body.push(text(MARGIN, y + 16, row.label.trimEnd(), "f", true));
        body.push(`<rect class="n" x="${xs[0]}" y="${y}" width="${(xs.at(-1) ?? 0) - (xs[0] ?? 0)}" height="${ROW}"/>`);
        for (const run of runsIn(row, this.cuts)) this.#run(body, run, y);
        y += ROW + GAP;
      }
      y += 8;
    }
    return y - 8;
  }

  #axis(body: string[], top: number, bottom: number): void {
    const free = [-Infinity, -Infinity];
    for (const [i, cut] of this.cuts.entries()) {
      const x = this.#xs[i] ?? 0;
      body.push(`<path class="l" d="M${x + 0.5} ${top + AXIS - 6}V${bottom}"/>`);
      const label = `0x${cut.toString(16)}`;
      const length = label.length * CHAR;
      const at = i === this.cuts.length - 1 ? x - length : x;
      const level = free.findIndex((end) => end <= at);
      if (level >= 0) {
        free[level] = at + length + 8;
        body.push(text(at, top + (level === 0 ? 24 : 10), label));
      }
      const next = this.cuts[i + 1];
      if (next === undefined) continue;
      body.push(text((x + (this.#xs[i + 1] ?? 0)) / 2, top + AXIS - 8, size(next - cut), "f m"));
    }
  }

  #run(body: string[], { first, last, piece, count }: Run, y: number): void {
    const x = this.#xs[first] ?? 0;
    const width = (this.#xs[last] ?? 0) - x;
    const hue = HUES.indexOf(piece.hue);
    const i = hue < 0 ? "x" : String(hue);
    body.push(shape(piece.look, i, x, y, width));
    const label = piece.texts.find((text) => text.length * CHAR + 12 <= width) ??
      piece.texts.at(-1)?.slice(0, Math.max(0, Math.floor((width - 12) / CHAR) - 1)).concat("…");
    if (label === undefined || width < 18) return;
    const length = label.length * CHAR + 6;
    const middle = x + width / 2;
    if (piece.look !== "writable" || count > 1) {
      const ground = piece.look.startsWith("slot") ? "n" : "g";
      body.push(`<rect class="${ground}" x="${middle - length / 2}" y="${y + 5}" width="${length}" height="14"/>`);
    }
    body.push(text(middle, y + 16, label, "m"));
  }
}

/** One piece. A pixel on its right stays free, so that neighbours can be told apart. */
function shape(look: Look, hue: string, x: number, y: number, width: number): string {
  const box = `x="${x + 0.5}" y="${y + 0.5}" width="${Math.max(1, width - 2)}" height="${ROW - 1}"`;
  switch (look) {
    case "writable":
      return `<rect class="w h${hue}" x="${x}" y="${y}" width="${Math.max(1, width - 1)}" height="${ROW}"/>`;
    case "read-only":
      return `<rect class="i h${hue}" ${box} style="fill:url(#mb-r${hue})"/>`;
    case "hidden":
      return `<rect ${box} style="fill:url(#mb-d${hue})"/>`;
    case "hole":
      return `<rect class="i h${hue}" ${box} stroke-dasharray="1 3"/>`;
    case "unmapped":
      return `<rect class="i h${hue}" ${box} stroke-dasharray="6 4"/>`;
    default: {
      const [from, to] = [x + 1, x + width - 2];
      const lines = look === "slot-ro" ? `M${from} ${y + 12}H${to}` : `M${from} ${y + 8}H${to}M${from} ${y + 16}H${to}`;
      return `<path class="s" d="${lines}M${from} ${y + 5}V${y + 19}M${to} ${y + 5}V${y + 19}"/>`;
    }
  }
}

function legend(body: string[], rows: readonly Row[], crowded: boolean, width: number, top: number): number {
  const used = new Set(rows.flatMap(({ pieces }) => pieces.map(({ look }) => look)));
  let [x, y] = [MARGIN, top];
  const place = (length: number) => {
    if (x > MARGIN && x + length > width - MARGIN) [x, y] = [MARGIN, y + ROW + GAP];
  };
  for (const [look, meaning] of LEGEND) {
    if (!used.has(look)) continue;
    const length = 48 + meaning.length * CHAR + 20;
    place(length);
    body.push(shape(look, "0", x, y, 40), text(x + 48, y + 16, meaning, "f"));
    x += length;
  }
  if (crowded) {
    const note = "small pieces are counted";
    place(note.length * CHAR);
    body.push(text(x, y + 16, note, "f"));
  }
  return y + ROW + GAP;
}

function text(x: number, y: number, said: string, className = "", keepsSpace = false): string {
  const space = keepsSpace ? ` xml:space="preserve"` : "";
  return `<text x="${x}" y="${y}"${className === "" ? "" : ` class="${className}"`}${space}>${escaped(said)}</text>`;
}

/** Text that is never markup, whatever a guest or a file is called; what XML cannot hold is replaced. */
function escaped(said: string): string {
  return said.toWellFormed()
    // deno-lint-ignore no-control-regex
    .replace(/[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]/g, "\ufffd")
    .replace(/[&<>"']/g, (char) => `&#${char.charCodeAt(0)};`);
}
