/**
 * What a person is told when a machine has ended.
 *
 * @module
 */

import { drawMemoryMap, type InspectNode } from "membacking";
import { describeCrash } from "../pc/crash.ts";
import type { SlotChanges } from "../pc/slot_log.ts";
import type { LinuxEnd } from "./machine.ts";

/** What there is to tell. */
export interface Course {
  /** The memory as it was at the end. */
  readonly map: InspectNode;
  /** How it ended. */
  readonly end: LinuxEnd;
  /** When user space was reached, in milliseconds. */
  readonly userSpace: number;
  /** What happened to the memory slots. */
  readonly slots: SlotChanges;
}

const ENDS = { off: "Switched off", reset: "Reset", stopped: "Stopped", crashed: "Crashed" } as const;

/** The lines. */
export function report({ map, end, userSpace, slots }: Course): string[] {
  const seconds = (millis: number) => `${(millis / 1000).toFixed(1)} s`;
  const exits = end.exits.map((counts, id) => {
    const kinds = Object.entries(counts).map(([kind, count]) => `${count} ${kind}`);
    return `vCPU ${id}: ${kinds.length === 0 ? "no exits" : `exits: ${kinds.join(", ")}`}`;
  });
  return [
    "",
    ...(end.crash === null ? [] : describeCrash(end.crash)),
    drawMemoryMap(map, { columns: 100 }),
    "",
    ...exits,
    `Memory slots: ${slots.made.length} made, ${slots.deleted.length} deleted, ${slots.micros.toFixed(0)} µs`,
    `User space after ${seconds(userSpace)}. ${ENDS[end.why]} after ${seconds(end.millis)}`,
  ];
}
