import type { Explanation } from "../regions/explanation.ts";

/**
 * An explanation as text, for a terminal.
 *
 * @example Usage
 * ```ts
 * import { drawExplanation, MemoryRange, RegionManager, VaMapper } from "membacking";
 *
 * using va = VaMapper.reserve(0x10_0000);
 * using regions = new RegionManager(va);
 * const region = regions.newRegion({ name: "window", range: new MemoryRange(0, 0x4000), priority: 0 });
 * console.log(drawExplanation(regions.explain(() => region.map())));
 * ```
 */
export function drawExplanation({ steps, systemCalls, slotChanges, noticed, effects, error }: Explanation): string {
  if (error !== null) {
    const why = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
    return `  would fail, and nothing would have changed\n  ${why}`;
  }
  if (steps === 0) return "  nothing to do";
  const width = String(steps).length;
  const lines = effects.map((effect, i) => `  ${String(i + 1).padStart(width)}  ${effect}`);
  const guest = noticed.length === 0 ? "a guest notices nothing" : `a guest could notice at ${noticed.join(", ")}`;
  const count = (number: number, what: string) => `${number} ${what}${number === 1 ? "" : "s"}`;
  return [
    ...lines,
    `  ${count(steps, "step")}, ${count(systemCalls, "system call")}, ${count(slotChanges, "slot change")}; ${guest}`,
  ].join("\n");
}
