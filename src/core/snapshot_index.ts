/**
 * The index of a snapshot as bytes: what its memory file holds, and everything else there is to know.
 *
 * ```
 *   "MBSNAP\r\n" | version u32 | checksum u32 | header length u64 | header, JSON, UTF-8 | spans | state
 *                               of all that follows
 *   a span:   start u64 | end u64 | checksum u32 of its bytes | 0 u32     first those stored, then those that are zeros
 * ```
 *
 * Numbers are little-endian. Spans are offsets in the memory file, whole pages, in order and disjoint. The checksum is
 * CRC-32 as in zlib, which is handed in: this file only arranges bytes.
 *
 * @module
 */

import { GPA_LIMIT, PAGE_SIZE } from "./memory_range.ts";
import type { Span } from "./span.ts";

/** CRC-32 (IEEE 802.3) of some bytes. */
export type Checksum = (bytes: Uint8Array) => number;

/** The version that this code writes, and the only one there has been. */
export const INDEX_VERSION = 1;

/** A part of the memory file that holds bytes. */
export interface StoredSpan extends Span {
  /** The checksum of those bytes. */
  readonly checksum: number;
}

/** RAM of one file or of one stretch of private memory. */
export interface SavedBacking {
  /** What its regions are called. */
  readonly name: string;
  /** Its ranges, each with its place in the memory file, in bytes. */
  readonly ranges: readonly (Span & { readonly offset: number })[];
}

/** What has to agree for a difference to fit, and what a restored manager is made with. */
export interface SavedLayout {
  /** Where guest memory ends, in bytes. */
  readonly maxAddress: number;
  /** Whether the ranges that PC chipsets switch are regions of their own. */
  readonly x86Legacy: boolean;
  /** The RAM. */
  readonly backings: readonly SavedBacking[];
}

/** The ranges of RAM that are not ordinary RAM. */
export interface SavedVisibility extends Span {
  /** How they are shown. */
  readonly visibility: "unmapped" | "read-only";
}

/** Everything about a snapshot but the bytes of memory. */
export interface SnapshotIndex {
  /** Unique in the world. */
  readonly id: string;
  /** The snapshot it is the difference to, `null` for a full one. */
  readonly parent: string | null;
  /** The layout of RAM. */
  readonly layout: SavedLayout;
  /** What of it is switched. */
  readonly visibility: readonly SavedVisibility[];
  /** What the memory file holds. */
  readonly stored: readonly StoredSpan[];
  /** What is zeros now, whatever the parent has there. A full snapshot is zeros wherever nothing is stored. */
  readonly zeros: readonly Span[];
  /** What the VMM put beside. */
  readonly state: ReadonlyMap<string, Uint8Array>;
}

const MAGIC = "MBSNAP\r\n";
const PREFIX = 24;
const SPAN = 24;

interface Header {
  readonly id: string;
  readonly parent: string | null;
  readonly layout: SavedLayout;
  readonly visibility: readonly SavedVisibility[];
  readonly stored: number;
  readonly zeros: number;
  readonly state: readonly { readonly name: string; readonly length: number }[];
}

/**
 * Where the ranges of RAM go in the memory file: those of a backing one right behind the other, as a backing with a
 * `fileOffset` shows them, from an offset on that is congruent to its first GPA modulo 2 MiB.
 */
export function memoryOffsets(backings: readonly (readonly Span[])[]): number[][] {
  const unit = 2 ** 21;
  let next = 0;
  return backings.map((ranges) => {
    const first = ranges[0]?.start ?? 0;
    next += (first % unit - next % unit + unit) % unit;
    return ranges.map(({ start, end }) => {
      const offset = next;
      next += end - start;
      return offset;
    });
  });
}

/** How long the memory file is, in bytes. */
export function memoryLength({ backings }: SavedLayout): number {
  let length = 0;
  for (const { ranges } of backings) {
    for (const { start, end, offset } of ranges) length = Math.max(length, offset + end - start);
  }
  return length;
}

/** How much RAM there is, in bytes. */
export function layoutBytes({ backings }: SavedLayout): number {
  return backings.flatMap(({ ranges }) => ranges).reduce((sum, { start, end }) => sum + end - start, 0);
}

/** Whether two layouts have the same RAM at the same places. */
export function isSameLayout(a: SavedLayout, b: SavedLayout): boolean {
  return JSON.stringify(normal(a)) === JSON.stringify(normal(b));
}

function normal({ maxAddress, x86Legacy, backings }: SavedLayout) {
  return [
    maxAddress,
    x86Legacy,
    backings.map(({ ranges }) => ranges.map(({ start, end, offset }) => [start, end, offset])),
  ];
}

/** The index as the bytes of its file. */
export function encodeIndex(index: SnapshotIndex, checksum: Checksum): Uint8Array<ArrayBuffer> {
  const state = [...index.state];
  const header: Header = {
    id: index.id,
    parent: index.parent,
    layout: index.layout,
    visibility: index.visibility,
    stored: index.stored.length,
    zeros: index.zeros.length,
    state: state.map(([name, { length }]) => ({ name, length })),
  };
  const json = new TextEncoder().encode(JSON.stringify(header));
  const spansAt = PREFIX + json.length;
  const stateAt = spansAt + (index.stored.length + index.zeros.length) * SPAN;
  const bytes = new Uint8Array(state.reduce((sum, [, { length }]) => sum + length, stateAt));
  const view = new DataView(bytes.buffer);
  bytes.set(new TextEncoder().encode(MAGIC));
  view.setUint32(8, INDEX_VERSION, true);
  view.setBigUint64(16, BigInt(json.length), true);
  bytes.set(json, PREFIX);
  let at = spansAt;
  for (const { start, end, checksum = 0 } of [...index.stored, ...index.zeros] as (Span & { checksum?: number })[]) {
    view.setBigUint64(at, BigInt(start), true);
    view.setBigUint64(at + 8, BigInt(end), true);
    view.setUint32(at + 16, checksum, true);
    at += SPAN;
  }
  for (const [, part] of state) {
    bytes.set(part, at);
    at += part.length;
  }
  view.setUint32(12, checksum(bytes.subarray(16)), true);
  return bytes;
}

/** Why bytes are not an index. */
export class IndexFault extends Error {
  /** What is wrong with them. */
  readonly kind: "version" | "truncated" | "corrupt";

  /** Builds the fault. */
  constructor(kind: IndexFault["kind"], message: string) {
    super(message);
    this.kind = kind;
  }
}

/**
 * Reads the bytes of an index, which may be anything.
 *
 * @throws {IndexFault} If they are not an index, or of a version that is not known.
 */
export function decodeIndex(bytes: Uint8Array, checksum: Checksum): SnapshotIndex {
  if (bytes.length < PREFIX) throw new IndexFault("truncated", `it has ${bytes.length} bytes and no room for an index`);
  if (new TextDecoder().decode(bytes.subarray(0, 8)) !== MAGIC) {
    throw new IndexFault("corrupt", "it does not begin like one");
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const version = view.getUint32(8, true);
  if (version !== INDEX_VERSION) {
    throw new IndexFault("version", `it is of version ${version}, and version ${INDEX_VERSION} is all that is known`);
  }
  if (view.getUint32(12, true) !== checksum(bytes.subarray(16))) {
    throw new IndexFault("corrupt", "its checksum does not agree");
  }
  const header = readHeader(bytes, Number(view.getBigUint64(16, true)));
  const spansAt = PREFIX + Number(view.getBigUint64(16, true));
  const stateAt = spansAt + (header.stored + header.zeros) * SPAN;
  const total = header.state.reduce((sum, { length }) => sum + length, stateAt);
  if (total !== bytes.length) {
    throw new IndexFault("truncated", `it has ${bytes.length} bytes, and should have ${total}`);
  }
  const limit = memoryLength(header.layout);
  const stored = readSpans(view, spansAt, header.stored, limit);
  const zeros = readSpans(view, spansAt + header.stored * SPAN, header.zeros, limit);
  const state = new Map<string, Uint8Array>();
  let at = stateAt;
  for (const { name, length } of header.state) {
    state.set(name, bytes.slice(at, at + length));
    at += length;
  }
  const { id, parent, layout, visibility } = header;
  return { id, parent, layout, visibility, stored, zeros, state };
}

function readSpans(view: DataView, at: number, count: number, limit: number): StoredSpan[] {
  let last = 0;
  return Array.from({ length: count }, (_, i) => {
    const start = Number(view.getBigUint64(at + i * SPAN, true));
    const end = Number(view.getBigUint64(at + i * SPAN + 8, true));
    if (!isPages(start) || !isPages(end) || start < last || end <= start || end > limit) {
      throw new IndexFault("corrupt", `part ${i} of its memory is from ${start} to ${end}`);
    }
    last = end;
    return { start, end, checksum: view.getUint32(at + i * SPAN + 16, true) };
  });
}

function readHeader(bytes: Uint8Array, length: number): Header {
  if (!(length <= bytes.length - PREFIX)) throw new IndexFault("truncated", "its header is cut off");
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(PREFIX, PREFIX + length)));
  } catch (cause) {
    throw new IndexFault("corrupt", `its header is not JSON: ${cause instanceof Error ? cause.message : cause}`);
  }
  if (!isHeader(value)) throw new IndexFault("corrupt", "its header does not have the fields of one");
  return value;
}

function isHeader(value: unknown): value is Header {
  if (!isObject(value)) return false;
  const { id, parent, layout, visibility, stored, zeros, state } = value;
  return typeof id === "string" && (parent === null || typeof parent === "string") && isLayout(layout) &&
    Array.isArray(visibility) && visibility.every(isVisibility) && isCount(stored) && isCount(zeros) &&
    Array.isArray(state) &&
    state.every((part) => isObject(part) && typeof part.name === "string" && isCount(part.length));
}

function isLayout(value: unknown): value is SavedLayout {
  if (!isObject(value)) return false;
  const { maxAddress, x86Legacy, backings } = value;
  return isPages(maxAddress) && typeof x86Legacy === "boolean" && Array.isArray(backings) &&
    backings.every((backing) =>
      isObject(backing) && typeof backing.name === "string" && Array.isArray(backing.ranges) &&
      backing.ranges.every(isSpan)
    ) && hasOffsets(backings);
}

/** Whether each range is where it has to be in the memory file. */
function hasOffsets(
  backings: readonly { readonly ranges: readonly (Span & { readonly offset?: unknown })[] }[],
): boolean {
  const offsets = memoryOffsets(backings.map(({ ranges }) => ranges));
  return backings.every(({ ranges }, i) => ranges.every(({ offset }, j) => offset === offsets[i]?.[j]));
}

function isVisibility(value: unknown): value is SavedVisibility {
  return isSpan(value) && (value.visibility === "unmapped" || value.visibility === "read-only");
}

function isSpan(value: unknown): value is Span & Record<string, unknown> {
  return isObject(value) && isPages(value.start) && isPages(value.end) && value.start < value.end;
}

function isPages(value: unknown): value is number {
  return isCount(value) && value % PAGE_SIZE === 0 && value <= GPA_LIMIT;
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}
