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
export function newRegionRequest(options: RegionOptions, age?: number): ChangeRequest {
  return {
    kind: "new-region",
    options: { ...options, range: endsOf(options.range), ...(age !== undefined && { age }) },
  };
}

/** Asks to back a part of a region. The file has to stay open until the request is answered. */
export function addMappingRequest(region: number, mapping: MappingOptions, connection: Connection): ChangeRequest {
  const { rangeInRegion, mappable, fileOffset, writable, copyOnWrite, policy } = mapping;
  const range = endsOf(rangeInRegion);
  if (mappable !== "private" && !(mappable instanceof Mappable)) {
    throw new TypeError('A mapping needs a Mappable or "private"');
  }
  const file = mappable === "private" ? mappable : connection.reference(mappable);
  const request = { kind: "add-mapping", region, range, file } as const;
  const isPlain = copyOnWrite === undefined && policy === undefined;
  if (isPlain && fileOffset !== undefined && writable !== undefined) return { ...request, fileOffset, writable };
  return {
    ...request,
    ...(fileOffset !== undefined && { fileOffset }),
    ...(writable !== undefined && { writable }),
    ...(copyOnWrite !== undefined && { copyOnWrite }),
    ...(policy !== undefined && { policy }),
  };
}

/** A handle of a mapping's file, for as long as the request about it is under way; `undefined` for private memory. */
export function heldFile({ mappable }: MappingOptions): Mappable | undefined {
  return mappable instanceof Mappable ? mappable.clone() : undefined;
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
