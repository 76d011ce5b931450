/**
 * The short way for what nearly all requests of a running virtual machine are: one mapping of a visible region put in
 * place, taken away or replaced, under ranges that partitions keep. One `mmap`, nothing to tell anyone.
 *
 * It decides nothing of its own: where anything is unusual it returns `null`, and `plan.ts` plans the same change the
 * long way. That both ways agree is a property the tests check.
 *
 * @module
 */

import { accessOf } from "./access.ts";
import type { Plan } from "./plan.ts";
import type { Step } from "./steps.ts";
import type { Exchange, Mapping, PartitionState, State } from "./state.ts";
import { pieceAt } from "./view.ts";

const NOTHING: readonly never[] = [];

/** The plan for an exchange of one mapping, or `null` where it takes more than that. */
export function planExchange(old: State, next: State, exchange: Exchange, spareMappings: number): Plan | null {
  if (old.dmaTargets.length > 0 || old.lost.size + old.poisoned.size + old.stale.size > 0) return null;
  const { start, end, region, params, from, to } = exchange;
  if ((from !== null && !isPlain(from)) || (to !== null && !isPlain(to))) return null;
  if (from !== null && to !== null && from.backing?.file === to.backing?.file && from.delta === to.delta) return null;
  if (params.prefetch) return null;
  for (let i = 0; i < old.partitions.length; i++) {
    if (!keepsRange(old.partitions[i]!, exchange)) return null;
  }
  const vmas = old.vmas + growth(old, exchange);
  if (vmas + 2 > old.vmas + spareMappings) return null;

  const { writable } = params;
  const step: Step = {
    kind: "va",
    start,
    end,
    action: to === null ? "remove" : "map",
    to: to === null ? null : { mapping: to, region, params, writable: writable && to.writable },
    from: [{
      start,
      end,
      value: from === null ? null : { mapping: from, region, params, writable: writable && from.writable },
    }],
  };
  const state = vmas === next.vmas ? next : { ...next, vmas };
  return { state, steps: [step], discards: NOTHING, torn: NOTHING };
}

/** Neither private memory nor huge pages nor anything whose mapping may fail late. */
function isPlain({ backing }: Mapping): boolean {
  return backing !== null && backing.pageSize === 4096 && !backing.mayFailLate;
}

/** Whether the partition has one range over all of it, before and after. */
function keepsRange({ target, pin, book }: PartitionState, { start, end, region, params, to }: Exchange): boolean {
  if (pin || (target.disposed ?? false)) return false;
  const entry = book.entryAt(start);
  if (entry === undefined || entry.end < end) return false;
  if (region.holes === "fault") return entry.value === accessOf(params.writable, params.executable);
  return to !== null && entry.value === accessOf(params.writable && to.writable, params.executable);
}

/** How many kernel mappings more there are afterwards. */
function growth(old: State, exchange: Exchange): number {
  const { start, end, mappings, from, to, shown, params: { writable } } = exchange;
  let left: Mapping | null;
  let right: Mapping | null;
  let leftWritable = writable;
  let rightWritable = writable;
  if (start > shown.start) left = mappings.entryAt(start - 1)?.value ?? null;
  else {
    const piece = pieceAt(old, start - 1)?.value;
    left = piece?.mapping ?? null;
    leftWritable = piece?.params.writable ?? false;
  }
  if (end < shown.end) right = mappings.entryAt(end)?.value ?? null;
  else {
    const piece = pieceAt(old, end)?.value;
    right = piece?.mapping ?? null;
    rightWritable = piece?.params.writable ?? false;
  }
  return edge(left, leftWritable, to, writable) + edge(to, writable, right, rightWritable) -
    edge(left, leftWritable, from, writable) - edge(from, writable, right, rightWritable);
}

/** 0 where one kernel mapping holds both neighbours, else 1. The flags say what their regions allow. */
function edge(a: Mapping | null, aWritable: boolean, b: Mapping | null, bWritable: boolean): 0 | 1 {
  if (a === null || b === null) return a === b ? 0 : 1;
  if ((a.writable && aWritable) !== (b.writable && bWritable)) return 1;
  const isOne = a === b ||
    (a.backing !== null && a.backing.file === b.backing?.file && a.delta === b.delta && a.policy === b.policy);
  return isOne ? 0 : 1;
}
