import type { RangeMap } from "../core/range_map.ts";
import { regionsIn } from "../core/map/layers.ts";
import { fragments } from "../core/map/overlap.ts";
import type { Mapping, Region, RegionState } from "../core/map/region.ts";
import type { State } from "../core/map/state.ts";
import { labelOf } from "../memory/file_backing.ts";
import { nameOf } from "../requests/carry_out.ts";

/** One mapping of an inspected region. */
export interface InspectMapping {
  /** The GPA range, such as `"0x1000-0x3000"`. */
  readonly range: string;
  /** The same as offsets from the start of the region. */
  readonly rangeInRegion: string;
  /** Whether the mapping may be written where its region allows it. */
  readonly writable: boolean;
  /** Where in the file it begins, in bytes; `null` for private memory. */
  readonly fileOffset: number | null;
  /** What backs it: `"private"`, or the file. */
  readonly backing: string;
  /** Whether what is written is the mapping's own, and the file stays as it is. */
  readonly copyOnWrite: boolean;
}

/** One region as it was when inspected. */
export interface InspectRegion {
  /** Its id. */
  readonly id: number;
  /** Its name. */
  readonly name: string;
  /** The GPA range it occupies. */
  readonly range: string;
  /** 0 to 255. */
  readonly priority: number;
  /** What kind of memory it is. */
  readonly type: "ram" | "device";
  /** What a guest access to an unbacked address does. */
  readonly holes: "exit" | "fault";
  /** How it is mapped, `null` while it is not. */
  readonly mapParams: { readonly writable: boolean; readonly executable: boolean; readonly prefetch: boolean } | null;
  /** Whether any of it is visible. */
  readonly active: boolean;
  /** The GPA ranges at which it is visible. */
  readonly visible: readonly string[];
  /** What backs it, in order. */
  readonly mappings: readonly InspectMapping[];
}

/** One partition as it was when inspected. */
export interface InspectPartition {
  /** Its name. */
  readonly name: string;
  /** Partition GPA minus region GPA, in bytes. */
  readonly offset: number;
  /** Whether its memory is pinned. */
  readonly pin: boolean;
  /** The ranges it has been told of (for KVM: its slots), in region GPAs. */
  readonly ranges: readonly { readonly range: string; readonly writable: boolean; readonly executable: boolean }[];
  /** Present while written pages are tracked and it cannot say which it has written: all it may write counts then. */
  readonly writesAll?: true;
}

/** One DMA target as it was when inspected. */
export interface InspectDmaTarget {
  /** Its name. */
  readonly name: string;
  /** The ranges it has been told of. */
  readonly ranges: readonly string[];
  /** Present while written pages are tracked and it cannot say which it has written: all it may write counts then. */
  readonly writesAll?: true;
}

/** A memory map as plain data: everything in it survives `JSON.stringify`. */
export interface InspectNode {
  /** The host address of GPA 0. */
  readonly base: number;
  /** The length of the reservation in bytes. */
  readonly length: number;
  /** The regions, oldest first. */
  readonly regions: readonly InspectRegion[];
  /** The partitions, in the order they were added. */
  readonly partitions: readonly InspectPartition[];
  /** The DMA targets, in the order they were added, with what each has been told of. */
  readonly dmaTargets: readonly InspectDmaTarget[];
  /** The ranges that are locked, and how often. */
  readonly locks: readonly { readonly range: string; readonly count: number }[];
  /** How many kernel mappings host memory takes. */
  readonly hostMappings: number;
  /** Ranges where an earlier undo failed; empty in good health. */
  readonly outOfStep: readonly string[];
}

function rangeText({ start, end }: { start: number; end: number }, offset = 0): string {
  return `0x${(start - offset).toString(16)}-0x${(end - offset).toString(16)}`;
}

function inspectMappings(mappings: RangeMap<Mapping>, region: Region): InspectMapping[] {
  return [...mappings].map((entry) => {
    const { value: mapping } = entry;
    return {
      range: rangeText(entry),
      rangeInRegion: rangeText(entry, region.range.start),
      writable: mapping.writable,
      fileOffset: mapping.backing === null ? null : entry.start + mapping.delta,
      backing: labelOf(mapping) ?? "private",
      copyOnWrite: mapping.kind === "copy-on-write",
    };
  });
}

function inspectRegion({ region, params, mappings }: RegionState, state: State): InspectRegion {
  const visible = fragments(state.visible, region).map((span) => rangeText(span));
  return {
    id: region.id,
    name: region.name,
    range: region.range.toString(),
    priority: region.priority,
    type: region.type,
    holes: region.holes,
    mapParams: params === null ? null : { ...params },
    active: visible.length > 0,
    visible,
    mappings: inspectMappings(mappings, region),
  };
}

/** Describes `state`. `base` and `length` are those of the reservation. */
export function inspectState(
  state: State,
  { base, length }: { base: number; length: number },
  locks: readonly { start: number; end: number; value: number }[],
): InspectNode {
  return {
    base,
    length,
    regions: regionsIn(state.layers).map((region) => inspectRegion(state.regionState(region), state)),
    partitions: state.partitions.map(({ target, offset, pin, slots }) => ({
      name: nameOf(target, "partition"),
      offset,
      pin,
      ranges: [...slots.held].map((entry) => {
        const { writable, executable } = entry.value;
        return { range: rangeText(entry), writable, executable };
      }),
      ...writesAll(state, target),
    })),
    dmaTargets: state.dmaTargets.map(({ target, mappings }) => ({
      name: nameOf(target, "DMA target"),
      ranges: [...mappings.held].map((entry) => rangeText(entry)),
      ...writesAll(state, target),
    })),
    locks: locks.map((entry) => ({ range: rangeText(entry), count: entry.value })),
    hostMappings: state.hostMappings,
    outOfStep: [...state.damage.outOfStep].map((entry) => rangeText(entry)),
  };
}

/** Says of a target that it cannot say what it has written, where somebody wants to know. */
function writesAll({ trackers }: State, target: { takeDirty?: unknown }): { writesAll?: true } {
  return trackers > 0 && target.takeDirty === undefined ? { writesAll: true } : {};
}
