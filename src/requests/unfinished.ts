import type { Change } from "../core/map/edits.ts";
import type { Mapping, Region } from "../core/map/region.ts";
import type { State } from "../core/map/state.ts";
import type { Span } from "../core/span.ts";
import type { Draft } from "./draft.ts";
import type { Transaction } from "./transaction.ts";

/** A request whose effects may have begun, and what has to be put in order after it. */
export interface Unfinished {
  readonly transaction: Transaction;
  readonly name: string;
  readonly region: Region | null;
  readonly change: Change;
  readonly added: Mapping | null;
  readonly draft: Draft | null;
}

/** Where two states may differ that differ in `changed` and in what undos could not restore. */
export function withDamage(old: State, { damage }: State, changed: readonly Span[]): readonly Span[] {
  return old.damage === damage ? changed : [...changed, ...old.damage.lost, ...damage.lost];
}
