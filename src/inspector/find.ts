import type { State } from "../core/map/state.ts";
import { GPA_LIMIT } from "../core/memory_range.ts";
import { labelOf } from "../memory/file_backing.ts";
import type { Layout } from "./layout.ts";

/** Something that was searched for. */
export interface Found {
  /** What it is called. */
  readonly name: string;
  /** What it is. */
  readonly what: "address" | "region" | "file";
  /** Where it begins, in bytes. */
  readonly start: number;
  /** Where it ends. */
  readonly end: number;
}

const MOST = 50;

/** Finds an address, such as `0xa0000`; a range of them; or regions and files by a part of their names. */
export function find(state: State, { regions }: Layout, text: string): Found[] {
  const wanted = text.trim().toLowerCase();
  if (wanted === "") return [];
  const addresses = wanted.split(/\s*(?:-|\.\.)\s*/).map(parseAddress);
  const [start, end = start === undefined ? undefined : start + 1] = addresses;
  const found: Found[] = [];
  if (addresses.length <= 2 && start !== undefined && end !== undefined && start < end && end <= GPA_LIMIT) {
    found.push({ name: text.trim(), what: "address", start, end });
  }
  for (const region of regions) {
    if (found.length >= MOST) break;
    const { name, range } = region;
    if (name.toLowerCase().includes(wanted)) found.push({ name, what: "region", start: range.start, end: range.end });
    for (const entry of state.regions.get(region)?.mappings ?? []) {
      if (found.length >= MOST) break;
      const label = labelOf(entry.value);
      if (label?.toLowerCase().includes(wanted)) {
        found.push({ name: `${label} in ${name}`, what: "file", start: entry.start, end: entry.end });
      }
    }
  }
  return found;
}

function parseAddress(text: string): number | undefined {
  if (/^(0x)?[0-9a-f_]{1,16}$/.test(text) && (text.startsWith("0x") || /^\d/.test(text))) {
    const digits = text.replaceAll("_", "");
    return digits.startsWith("0x") || /[a-f]/.test(digits) ? Number.parseInt(digits, 16) : Number(digits);
  }
  return undefined;
}
