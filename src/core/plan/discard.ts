/**
 * Giving memory back to the host: what of a range is given back how, and what the books have to say afterwards.
 *
 * It cannot be undone, so it is no step of a plan. It happens first, and a request puts everything else in place then: DMA
 * targets are told anew, since they may hold the old pages, and copy-on-write memory becomes private memory in the map,
 * since it would show its file again.
 *
 * @module
 */

import { MappingError } from "../errors.ts";
import { hex } from "../hex.ts";
import { MemoryRange, PAGE_SIZE } from "../memory_range.ts";
import type { Entry } from "../range_map.ts";
import { normalize, type Span } from "../span.ts";
import { type Change, setMapping } from "../map/edits.ts";
import type { Mapping, Piece } from "../map/region.ts";
import { Sight } from "../map/sight.ts";
import type { State } from "../map/state.ts";
import { outOfStep, type Unrestored } from "./out_of_step.ts";

/** Runs of copy-on-write memory below this many bytes are zeroed in place: a mapping each would cost more. */
const SHORT_RUN = 16 * PAGE_SIZE;

/** What is given back, in the way it is. */
export interface Discard {
  /** Memory of files, of which the pages are punched out. */
  readonly punched: readonly Entry<Piece>[];
  /** Private memory, whose pages are given up. */
  readonly emptied: readonly Entry<Piece>[];
  /** Copy-on-write memory that is overwritten with zeros. */
  readonly zeroed: readonly Entry<Piece>[];
  /** Copy-on-write memory that becomes private memory. */
  readonly replaced: readonly Entry<Piece>[];
}

/**
 * Decides how `[start, end)` is given back.
 *
 * @throws {MappingError} If it is not all RAM that shows, cuts a huge page, or is held by somebody who would not notice.
 */
export function planDiscard(state: State, start: number, end: number): Discard {
  const discard = { punched: [], emptied: [], zeroed: [], replaced: [] } as Record<keyof Discard, Entry<Piece>[]>;
  const sight = new Sight(state);
  for (let at = start; at < end;) {
    sight.move(at);
    const stop = Math.min(sight.end, end);
    const piece = sight.piece();
    if (piece === null || piece.region.type !== "ram" || sight.lost || sight.poisoned) {
      throw new MappingError(
        `Only RAM that the guest has can be discarded, and there is ${piece === null ? "nothing" : "none"} at ${
          hex(at)
        }`,
        new MemoryRange(start, end),
      );
    }
    const { pageSize } = piece.mapping.backing ?? { pageSize: PAGE_SIZE };
    if (at % pageSize !== 0 || stop % pageSize !== 0) {
      throw new MappingError(
        `Huge pages of ${hex(pageSize)} are discarded whole, and ${hex(at)}-${hex(stop)} cuts them`,
        new MemoryRange(start, end),
      );
    }
    discard[wayOf(piece, stop - at)].push({ start: at, end: stop, value: piece });
    at = stop;
  }
  checkHolders(state, start, end);
  return discard;
}

function wayOf({ mapping, writable }: Piece, length: number): keyof Discard {
  if (mapping.kind === "shared") return "punched";
  if (mapping.kind === "private") return "emptied";
  return length < SHORT_RUN && writable ? "zeroed" : "replaced";
}

/** Throws if somebody holds the very pages: they would go on being used. */
function checkHolders({ partitions, dmaTargets }: State, start: number, end: number): void {
  const pinned = partitions.some(({ pins }) => pins.held.overlaps(start, end)) ||
    dmaTargets.some((dma) => dma.pins && dma.mappings.held.overlaps(start, end));
  if (!pinned) return;
  throw new MappingError("Memory that is pinned cannot be discarded", new MemoryRange(start, end));
}

/**
 * What is to be done once the pages are gone: the state with the truth about it, and the change that puts it in order;
 * `null` where there is nothing to do.
 */
export function afterDiscard(
  old: State,
  { start, end }: Span,
  { replaced }: Discard,
): { state: State; change: Change } | null {
  const changed: Span[] = replaced.map(({ start, end }) => ({ start, end }));
  const doubtful: Unrestored[] = [];
  for (const dma of old.dmaTargets) {
    for (const entry of dma.mappings.held.overlapping(start, end)) {
      const { start, end, value } = entry;
      doubtful.push({
        step: { kind: "dma", dma, start, end, from: null, to: value, uncertain: false },
        uncertain: true,
      });
      changed.push({ start, end });
    }
  }
  if (changed.length === 0) return null;
  const state = doubtful.length === 0 ? old : outOfStep(old, doubtful, []);
  let change: Change = { state, changed, gone: [], split: [], removed: [] };
  for (const { start, end, value: { mapping, region } } of replaced) {
    const { writable, policy } = mapping;
    const own: Mapping = { kind: "private", backing: null, own: { start, end }, delta: 0, writable, policy };
    const edit = setMapping(change.state, region, start, end, own, true);
    change = {
      state: edit.state,
      changed,
      gone: [...change.gone, ...edit.gone],
      split: [...change.split, ...edit.split],
      removed: [...change.removed, ...edit.removed],
    };
  }
  return { state, change: { ...change, changed: normalize(changed) } };
}
