import type { Change } from "../core/map/edits.ts";
import type { Mapping, Region } from "../core/map/region.ts";
import type { Damage, State } from "../core/map/state.ts";
import type { MemoryRange } from "../core/memory_range.ts";
import type { Span } from "../core/span.ts";
import type { Draft } from "./draft.ts";

/** A request, on its own or a batch of them. */
export interface Request {
  /** What it is called where it is told of. */
  readonly name: string;
  /** The region it is about, if it is about one. */
  readonly region: Region | null;
  /** What it changes. */
  readonly change: Change;
  /** A mapping it brings along, whose file is the map's to close. */
  readonly added: Mapping | null;
  /** The batch, where it is one. */
  readonly draft: Draft | null;
  /** What it does besides changing the map. */
  readonly deed: Deed | null;
}

/** What a request does to memory itself, besides changing the map. */
export interface Deed {
  /** Where vCPUs are held off, whatever the plan says; nowhere where somebody holds them already. */
  readonly hold: readonly MemoryRange[];
  /** Whether all memory has the same bytes afterwards, so that locks are not in the way and nothing counts as written. */
  readonly keepsBytes: boolean;
  /** Done once vCPUs are held and nobody looks, before the first step. */
  act(): void;
}

/** Where two states may differ that differ in `changed` and in what undos could not restore. */
export function withDamage(old: State, { damage }: State, changed: readonly Span[]): readonly Span[] {
  return old.damage === damage ? changed : withLost(changed, old.damage, damage);
}

function withLost(changed: readonly Span[], before: Damage, after: Damage): readonly Span[] {
  return [...changed, ...before.lost, ...after.lost];
}
