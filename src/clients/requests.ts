/**
 * What a user asks of a client, as messages.
 *
 * @module
 */

import { Mappable } from "../../ffi/files/mappable.ts";
import { MemoryRange } from "../core/memory_range.ts";
import type { MapParams } from "../core/map/region.ts";
import type { MappingOptions } from "../regions/region_handle.ts";
import type { RegionInfo } from "../regions/region_info.ts";
import type { RegionOptions } from "../regions/options.ts";
import type { Connection } from "./connection.ts";
import type { Json } from "../serving/error_data.ts";
import type { ChangeRequest, Ends } from "../serving/protocol.ts";

/** The ends of a range. */
export function endsOf(range: MemoryRange): Ends {
  if (!(range instanceof MemoryRange)) throw new TypeError("A MemoryRange is needed");
  return [range.start, range.end];
}

/** Asks for a new region. */
export function newRegionRequest(options: RegionOptions): ChangeRequest {
  return { kind: "new-region", options: { ...options, range: endsOf(options.range) } };
}

/** Asks to back a part of a region. `held` keeps the file open until it is disposed. */
export function addMappingRequest(
  region: number,
  { rangeInRegion, mappable, ...rest }: MappingOptions,
  connection: Connection,
): { request: ChangeRequest; held: Mappable | undefined } {
  const range = endsOf(rangeInRegion);
  if (mappable === "private") {
    return { request: { kind: "add-mapping", region, range, file: "private", ...rest }, held: undefined };
  }
  if (!(mappable instanceof Mappable)) throw new TypeError('A mapping needs a Mappable or "private"');
  const held = mappable.clone();
  return { request: { kind: "add-mapping", region, range, file: connection.reference(held), ...rest }, held };
}

/** What the owner says a region is mapped with. */
export function paramsFrom(answer: Json): MapParams | null {
  // SAFETY: what the owner made of MapParams.
  return answer as unknown as MapParams | null;
}

/** Where the owner says a region is visible. */
export function rangesFrom(answer: Json): MemoryRange[] {
  // SAFETY: what the owner made of MemoryRanges.
  return (answer as unknown as Ends[]).map(([start, end]) => new MemoryRange(start, end));
}

/** What the owner says its regions are. */
export function regionsFrom(answer: Json): readonly RegionInfo[] {
  // SAFETY: what the owner made of RegionInfos.
  const regions = answer as unknown as readonly (Omit<RegionInfo, "range"> & { readonly range: Ends })[];
  return Object.freeze(
    regions.map(({ range: [start, end], params, ...rest }) =>
      Object.freeze({
        ...rest,
        range: new MemoryRange(start, end),
        params: params === null ? null : Object.freeze(params),
      })
    ),
  );
}
