/**
 * Medians and ratios. Absolute times mean little on a shared machine, so two programs are compared round by round:
 * each round gives one ratio of times taken a few milliseconds apart, and what counts is the median of the ratios.
 *
 * @module
 */

/** A figure with its spread: the median, and the quartiles around it. */
export interface Figure {
  readonly median: number;
  readonly low: number;
  readonly high: number;
}

/** The value below which the fraction `at` of the sorted values lies. */
function quantile(sorted: readonly number[], at: number): number {
  const position = (sorted.length - 1) * at;
  const below = Math.floor(position);
  const a = sorted[below] ?? NaN;
  const b = sorted[Math.min(below + 1, sorted.length - 1)] ?? NaN;
  return a + (b - a) * (position - below);
}

/** The median of `values` and their quartiles. */
export function figure(values: readonly number[]): Figure {
  const sorted = values.toSorted((a, b) => a - b);
  return { median: quantile(sorted, 0.5), low: quantile(sorted, 0.25), high: quantile(sorted, 0.75) };
}

/** The ratio of `times` to `others`, taken in the same rounds. */
export function ratio(times: readonly number[], others: readonly number[]): Figure {
  return figure(times.map((time, round) => time / (others[round] ?? NaN)));
}

/** How a figure stands to the most it may be. */
export type Verdict = "met" | "missed" | "within spread";

/** `"within spread"`: the median is above the target, the lower quartile is not. */
export function verdict({ median, low }: Figure, atMost: number): Verdict {
  if (median <= atMost) return "met";
  return low <= atMost ? "within spread" : "missed";
}
