/**
 * Draws latency against scale as an SVG that reads on light and on dark pages.
 *
 * @module
 */

import type { ScaleRow } from "./scale.ts";

const WIDTH = 900;
const HEIGHT = 420;
const PLOT = { left: 64, right: 520, top: 56, bottom: 360 };
const COLORS = ["#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#a855f7"];

function escape(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}

/** Powers of ten, and two and five times those, from `low` to `high`. */
function ticks(low: number, high: number): number[] {
  const found: number[] = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const factor of [1, 2, 5]) {
      const value = factor * 10 ** power;
      if (value >= low && value <= high) found.push(value);
    }
  }
  return found;
}

/** Microseconds per request over the number of regions or mappings, both on logarithmic axes. */
export function drawScale(rows: readonly ScaleRow[]): string {
  const sizes = rows[0]?.sizes ?? [];
  const times = rows.flatMap((row) => row.time.flatMap(({ low, high }) => [low, high]));
  const [least, most] = [Math.min(...times, 1) * 0.8, Math.max(...times) * 1.25];
  const scaled = (value: number, from: number, to: number, a: number, b: number) =>
    a + (Math.log(value) - Math.log(from)) / (Math.log(to) - Math.log(from)) * (b - a);
  const x = (size: number) => scaled(size, sizes[0] ?? 1, sizes.at(-1) ?? 2, PLOT.left + 24, PLOT.right - 24);
  const y = (time: number) => scaled(time, least, most, PLOT.bottom, PLOT.top);
  const at = (value: number) => value.toFixed(1);

  const lines: string[] = [];
  for (const tick of ticks(least, most)) {
    lines.push(`<line class="grid" x1="${PLOT.left}" x2="${PLOT.right}" y1="${at(y(tick))}" y2="${at(y(tick))}"/>`);
    lines.push(`<text x="${PLOT.left - 8}" y="${at(y(tick) + 4)}" text-anchor="end">${tick}</text>`);
  }
  for (const size of sizes) {
    lines.push(`<line class="grid" x1="${at(x(size))}" x2="${at(x(size))}" y1="${PLOT.top}" y2="${PLOT.bottom}"/>`);
    lines.push(
      `<text x="${at(x(size))}" y="${PLOT.bottom + 20}" text-anchor="middle">${size.toLocaleString("en")}</text>`,
    );
  }
  // Names stand at the ends of their lines, moved apart where they would overlap.
  const labels = rows.map((row, i) => ({ i, row, y: y(row.time.at(-1)?.median ?? 1) })).sort((a, b) => a.y - b.y);
  let below = -Infinity;
  for (const label of labels) below = label.y = Math.max(label.y, below + 34);
  for (const { i, row, y: labelY } of labels) {
    const color = COLORS[i % COLORS.length];
    const points = row.time.map((time, k) => ({ x: x(row.sizes[k] ?? 1), time }));
    for (const point of points) {
      const [low, high] = [at(y(point.time.low)), at(y(point.time.high))];
      lines.push(`<line stroke="${color}" x1="${at(point.x)}" x2="${at(point.x)}" y1="${low}" y2="${high}"/>`);
      lines.push(`<circle fill="${color}" cx="${at(point.x)}" cy="${at(y(point.time.median))}" r="3.5"/>`);
    }
    const path = points.map((point) => `${at(point.x)},${at(y(point.time.median))}`).join(" ");
    lines.push(`<polyline fill="none" stroke="${color}" stroke-width="2" points="${path}"/>`);
    const end = points.at(-1);
    if (end === undefined) continue;
    lines.push(
      `<line stroke="${color}" stroke-opacity="0.5" x1="${at(end.x + 5)}" y1="${at(y(end.time.median))}" ` +
        `x2="${PLOT.right + 10}" y2="${at(labelY - 4)}"/>`,
    );
    const [what = "", request = ""] = row.title.split(": ");
    const growth = `grows ${row.growth.median.toFixed(2)} times`;
    lines.push(
      `<text class="name" style="fill: ${color}" x="${PLOT.right + 14}" y="${at(labelY)}">${escape(what)}</text>`,
    );
    lines.push(`<text x="${PLOT.right + 14}" y="${at(labelY + 14)}">${escape(request)}; ${growth}</text>`);
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" width="${WIDTH}" height="${HEIGHT}">
<title>The manager's own time per request, by the number of regions or mappings</title>
<style>
  text { font: 12px system-ui, sans-serif; fill: #57606a; }
  text.title { font-size: 15px; font-weight: 600; fill: #24292f; }
  text.name { font-weight: 600; }
  line.grid { stroke: #8b949e; stroke-opacity: 0.25; }
  @media (prefers-color-scheme: dark) { text { fill: #8b949e; } text.title { fill: #e6edf3; } }
</style>
<text class="title" x="${PLOT.left}" y="26">Own time per request, in microseconds (medians and quartiles)</text>
${lines.join("\n")}
<text x="${(PLOT.left + PLOT.right) / 2}" y="${PLOT.bottom + 42}" text-anchor="middle">regions or mappings</text>
</svg>
`;
}
