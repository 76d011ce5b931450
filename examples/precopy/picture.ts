/**
 * What was written where, and how far the copy has got, as text.
 *
 * @module
 */

import { MemoryRange } from "membacking";
import type { Round } from "./precopy.ts";

const SHADES = [" ", "░", "▒", "▓", "█"] as const;
const PAGE = 4096;

/** A bar of `width` characters for a share of 1. */
export function bar(share: number, width: number): string {
  const full = Math.round(Math.min(1, share) * width);
  return "█".repeat(full) + "░".repeat(width - full);
}

/** `1234567` as `1,234,567`. */
export function grouped(value: number): string {
  return Math.round(value).toLocaleString("en-US");
}

/**
 * Guest memory of `length` bytes in lines of `width` cells: the darker a cell, the more of its pages were written while
 * memory was copied, all rounds together but the first.
 */
export function drawWritten(rounds: readonly Round[], length: number, width: number, lines: number): string {
  const cell = Math.ceil(length / PAGE / (width * lines)) * PAGE;
  const counts = Array.from({ length: Math.ceil(length / cell) }, (_, i) => {
    const range = MemoryRange.of(i * cell, Math.min(cell, length - i * cell));
    return rounds.slice(1).reduce((sum, { pages }) => sum + pages.within(range).count, 0) / (range.length / PAGE);
  });
  const most = Math.max(...counts, Number.MIN_VALUE);
  // By powers, or a few pages that are written in each round would leave the rest pale.
  const shadeOf = (count: number) => Math.max(1, Math.ceil(4 * Math.log1p(16 * count) / Math.log1p(16 * most)));
  const upTo = (shade: number) => (Math.expm1(shade / 4 * Math.log1p(16 * most)) / 16).toFixed(1);
  const shade = (count: number) => SHADES[count === 0 ? 0 : shadeOf(count)] ?? "█";
  const drawn: string[] = [];
  for (let i = 0; i < counts.length; i += width) {
    const address = `0x${(i * cell).toString(16).padStart(8, "0")}`;
    drawn.push(`${address} |${counts.slice(i, i + width).map(shade).join("").padEnd(width)}|`);
  }
  const legend = SHADES.slice(1).map((shade, i) => `${shade} ${upTo(i + 1)}`).join("   ");
  return `${drawn.join("\n")}\n${" ".repeat(12)}in how many rounds a page of a cell was written, up to: ${legend}`;
}
