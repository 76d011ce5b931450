/**
 * The requests of a running VM as numbers, and their answers: JSON would cost more than all the rest when it is cold.
 *
 * A request that cannot be told in numbers, or an answer, goes as text: `encode` says `TEXT` then. What is encoded is
 * exactly what comes out again, odd numbers included.
 *
 * @module
 */

import type { MapParams } from "../core/map/region.ts";
import type { Json } from "./error_data.ts";
import { ProtocolError } from "./protocol_error.ts";
import type { Request } from "./protocol.ts";
import { MAIL, TEXT } from "./shared_words.ts";

const REQUEST = { map: 1, unmap: 2, addMapping: 3, removeMappings: 4, remove: 5, mapParams: 6 } as const;
const ANSWER = { nothing: 1, number: 2, params: 3 } as const;

/** For each of the three params: given or not, and what. */
const PARAMS = ["writable", "executable", "prefetch"] as const;
const GIVEN = 8;

const HAS_OFFSET = 1;
const HAS_WRITABLE = 2;
const IS_WRITABLE = 4;

/** The numbers of a mailbox's request. */
export function numbersOf(words: SharedArrayBuffer): Float64Array {
  return new Float64Array(words, MAIL.numbers, MAIL.numberCount);
}

/** The numbers of its answer. */
export function answerNumbersOf(words: SharedArrayBuffer): Float64Array {
  return new Float64Array(words, MAIL.answerNumbers, MAIL.numberCount);
}

/** Writes a request into `numbers`. Returns its code, or `TEXT` where it has to go as text. */
export function encodeRequest(request: Request, numbers: Float64Array): number {
  if (!("region" in request)) return TEXT;
  numbers[0] = request.region;
  switch (request.kind) {
    case "map": {
      const flags = flagsOf(request.params);
      if (flags === null) return TEXT;
      numbers[1] = flags;
      return REQUEST.map;
    }
    case "unmap":
      return REQUEST.unmap;
    case "map-params":
      return REQUEST.mapParams;
    case "remove":
      return request.eventually === true ? TEXT : REQUEST.remove;
    case "remove-mappings":
      [numbers[1], numbers[2]] = request.range;
      return REQUEST.removeMappings;
    case "add-mapping": {
      const { range, file, fileOffset, writable } = request;
      if (file === "private" || "policy" in request || "copyOnWrite" in request) return TEXT;
      if (fileOffset !== undefined && typeof fileOffset !== "number") return TEXT;
      if (writable !== undefined && typeof writable !== "boolean") return TEXT;
      [numbers[1], numbers[2]] = range;
      numbers[3] = file.key;
      numbers[4] = file.fd;
      numbers[5] = fileOffset ?? 0;
      numbers[6] = (fileOffset === undefined ? 0 : HAS_OFFSET) |
        (writable === undefined ? 0 : HAS_WRITABLE | (writable ? IS_WRITABLE : 0));
      return REQUEST.addMapping;
    }
    default:
      return TEXT;
  }
}

/**
 * The request that a client has written down. `numbers` is the owner's own copy, and has as many as there is room for.
 *
 * @throws {ProtocolError} If it is none.
 */
export function decodeRequest(code: number, numbers: Float64Array): Request {
  const region = numbers[0]!;
  if (!Number.isSafeInteger(region)) throw new ProtocolError(`There is no region ${region}`);
  switch (code) {
    case REQUEST.map:
      return { kind: "map", region, params: paramsGiven(numbers[1]!) };
    case REQUEST.unmap:
      return { kind: "unmap", region };
    case REQUEST.mapParams:
      return { kind: "map-params", region };
    case REQUEST.remove:
      return { kind: "remove", region };
    case REQUEST.removeMappings:
      return { kind: "remove-mappings", region, range: [numbers[1]!, numbers[2]!] };
    case REQUEST.addMapping: {
      const flags = numbers[6]!;
      return {
        kind: "add-mapping",
        region,
        range: [numbers[1]!, numbers[2]!],
        file: { key: numbers[3]!, fd: numbers[4]! },
        fileOffset: (flags & HAS_OFFSET) !== 0 ? numbers[5]! : 0,
        writable: (flags & HAS_WRITABLE) === 0 || (flags & IS_WRITABLE) !== 0,
      };
    }
    default:
      throw new ProtocolError(`There is no request of code ${code}`);
  }
}

/** Writes an answer into `numbers`. Returns its code, or `TEXT` where it has to go as text. */
export function encodeAnswer(value: Json, request: Request["kind"], numbers: Float64Array): number {
  if (value === null) return ANSWER.nothing;
  if (typeof value === "number") {
    numbers[0] = value;
    return ANSWER.number;
  }
  if (request !== "map-params") return TEXT;
  // SAFETY: the answer to this request is a region's params.
  numbers[0] = flagsOf(value as unknown as MapParams) ?? 0;
  return ANSWER.params;
}

/** The answer that the owner has written down; `undefined` for a code that is none. */
export function decodeAnswer(code: number, numbers: Float64Array): Json | undefined {
  switch (code) {
    case ANSWER.nothing:
      return null;
    case ANSWER.number:
      return numbers[0] ?? 0;
    case ANSWER.params:
      return paramsGiven(numbers[0] ?? 0);
    default:
      return undefined;
  }
}

function flagsOf(params: Partial<MapParams>): number | null {
  let flags = 0;
  for (let i = 0; i < PARAMS.length; i++) {
    const value: unknown = params[PARAMS[i] ?? "writable"];
    if (value === undefined) continue;
    if (typeof value !== "boolean") return null;
    flags |= GIVEN << i | (value ? 1 << i : 0);
  }
  return flags;
}

function paramsGiven(flags: number): Record<string, boolean> {
  const params: Record<string, boolean> = {};
  for (let i = 0; i < PARAMS.length; i++) {
    if ((flags & GIVEN << i) !== 0) params[PARAMS[i]!] = (flags & 1 << i) !== 0;
  }
  return params;
}
