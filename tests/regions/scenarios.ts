/**
 * Requests worth breaking: each with what has to be there first. Numbers are pages, as in the model.
 *
 * @module
 */

import type { AddMapping, ModelFile, NewRegion, Request } from "../model/model.ts";

/** The length of the address space of every scenario, in pages. */
export const PAGES = 24;

/** The files: three to write, one to read. */
export const FILES: readonly ModelFile[] = [
  { pages: 64, writable: true },
  { pages: 64, writable: true },
  { pages: 64, writable: true },
  { pages: 64, writable: false },
];

/** A request and its world. */
export interface Scenario {
  readonly name: string;
  readonly overlap?: "nested" | "any";
  /** What is done before. */
  readonly given: readonly Request[];
  /** What is broken. */
  readonly request: Request;
}

function region(start: number, pages: number, priority = 0, rest: Partial<NewRegion> = {}): NewRegion {
  return { kind: "newRegion", start, pages, priority, type: "ram", holes: "exit", ...rest };
}

function add(region: number, at: number, pages: number, file: number | "private", rest: Partial<AddMapping> = {}) {
  return { kind: "addMapping" as const, region, at, pages, file, filePage: at, writable: file !== 3, ...rest };
}

function map(region: number, rest: { writable?: boolean; executable?: boolean; prefetch?: boolean } = {}): Request {
  return { kind: "map", region, writable: true, executable: true, prefetch: false, ...rest };
}

function batch(...requests: Request[]): Request {
  return { kind: "batch", requests, abandon: false };
}

const unmap = (region: number): Request => ({ kind: "unmap", region });
const remove = (region: number, at: number, pages: number): Request => ({ kind: "removeMappings", region, at, pages });
const dispose = (region: number): Request => ({ kind: "disposeRegion", region });

/** Two virtual machines, one of them pinned and at an offset, and two devices. */
const targets: Request[] = [
  { kind: "addPartition", offset: 0, pin: false },
  { kind: "addDmaTarget" },
  { kind: "addPartition", offset: 1000, pin: true },
  { kind: "addDmaTarget" },
];

/** Without the one that pins, which copy-on-write memory cannot be. */
const unpinned = targets.filter((target) => !("pin" in target && target.pin));

/** Region 0 with mappings of several files, read-only ones among them, and a hole. */
const busy: Request[] = [
  region(2, 16),
  add(0, 0, 4, 0),
  add(0, 4, 2, 3),
  add(0, 6, 3, 1, { writable: false }),
  add(0, 10, 2, 0, { filePage: 40 }),
  add(0, 12, 4, 2),
];

/** Regions 0 to 2 side by side, region 3 over them all. */
const nested: Request[] = [
  region(0, 4, 1),
  add(0, 0, 4, 0),
  region(4, 4, 1),
  add(1, 0, 2, 1),
  region(12, 8, 2),
  add(2, 0, 8, 2, { writable: false }),
  region(0, 24, 9),
  add(3, 2, 8, 1, { filePage: 20 }),
  add(3, 14, 2, 3),
  map(0),
  map(1),
  map(2, { writable: false }),
];

/** Region 0 large and low; regions 1 to 3 small, over it and over each other. */
const fragments: Request[] = [
  region(0, 20, 0),
  add(0, 0, 20, 0),
  region(3, 6, 1),
  add(1, 0, 6, 1),
  region(7, 8, 2),
  add(2, 1, 5, 2),
  region(5, 4, 3, { type: "device" }),
  add(3, 0, 4, 3),
];

/** Every scenario. */
export const SCENARIOS: readonly Scenario[] = [
  { name: "map a region with many mappings", given: [...targets, ...busy], request: map(0) },
  { name: "map it read-only", given: [...targets, ...busy], request: map(0, { writable: false }) },
  { name: "map it with prefetch", given: [...targets, ...busy], request: map(0, { prefetch: true }) },
  { name: "unmap a region with many mappings", given: [...targets, ...busy, map(0)], request: unmap(0) },
  { name: "dispose a region with many mappings", given: [...targets, ...busy, map(0)], request: dispose(0) },
  { name: "make a region read-only", given: [...targets, ...busy, map(0)], request: map(0, { writable: false }) },
  {
    name: "make a region writable again",
    given: [...targets, ...busy, map(0, { writable: false })],
    request: map(0),
  },
  { name: "forbid execution", given: [...targets, ...busy, map(0)], request: map(0, { executable: false }) },
  { name: "turn prefetch on", given: [...targets, ...busy, map(0)], request: map(0, { prefetch: true }) },
  { name: "replace the middle of a mapping", given: [...targets, ...busy, map(0)], request: add(0, 1, 2, 2) },
  { name: "replace the middle by read-only memory", given: [...targets, ...busy, map(0)], request: add(0, 1, 2, 3) },
  {
    name: "replace several mappings and the hole between them",
    given: [...targets, ...busy, map(0, { prefetch: true })],
    request: add(0, 2, 11, 1),
  },
  { name: "fill a hole", given: [...targets, ...busy, map(0)], request: add(0, 9, 1, 0) },
  { name: "cut a hole into a mapping", given: [...targets, ...busy, map(0)], request: remove(0, 13, 2) },
  { name: "remove several mappings", given: [...targets, ...busy, map(0)], request: remove(0, 3, 8) },
  { name: "show a region over several others", given: [...targets, ...nested], request: map(3) },
  { name: "unmap a region over several others", given: [...targets, ...nested, map(3)], request: unmap(3) },
  { name: "dispose a region over several others", given: [...targets, ...nested, map(3)], request: dispose(3) },
  {
    name: "replace a region by another of equal priority",
    given: [...targets, region(0, 8), region(0, 8), add(0, 0, 8, 0), add(1, 0, 8, 1), map(1)],
    request: map(0),
  },
  {
    name: "show a small region in a large one",
    overlap: "any",
    given: [...targets, ...fragments, map(0)],
    request: map(1),
  },
  {
    name: "show a region through which two others show",
    overlap: "any",
    given: [...targets, ...fragments, map(0), map(1), map(3)],
    request: map(2),
  },
  {
    name: "unmap what lies beneath everything",
    overlap: "any",
    given: [...targets, ...fragments, map(0), map(1), map(2), map(3)],
    request: unmap(0),
  },
  {
    name: "dispose what lies in the middle",
    overlap: "any",
    given: [...targets, ...fragments, map(0), map(1), map(2), map(3)],
    request: dispose(1),
  },
  {
    name: "attach a partition",
    given: [...busy, map(0), { kind: "addDmaTarget" }],
    request: { kind: "addPartition", offset: 0, pin: false },
  },
  {
    name: "attach a pinned partition at an offset",
    given: [...busy, map(0, { prefetch: true })],
    request: { kind: "addPartition", offset: 64, pin: true },
  },
  {
    name: "detach a partition",
    given: [...targets, ...busy, map(0)],
    request: { kind: "detachPartition", partition: 0 },
  },
  {
    name: "detach a pinned partition",
    given: [...targets, ...busy, map(0)],
    request: { kind: "detachPartition", partition: 1 },
  },
  { name: "attach a DMA target", given: [...targets, ...busy, map(0)], request: { kind: "addDmaTarget" } },
  {
    name: "detach a DMA target",
    given: [...targets, ...busy, map(0)],
    request: { kind: "detachDmaTarget", target: 1 },
  },
  {
    name: "map a window",
    given: [...targets, region(0, 16, 0, { holes: "fault" }), add(0, 2, 3, 0), add(0, 8, 1, 3)],
    request: map(0),
  },
  {
    name: "change the mappings of a window",
    given: [...targets, region(0, 16, 0, { holes: "fault" }), add(0, 2, 3, 0), add(0, 8, 1, 3), map(0)],
    request: batch(add(0, 3, 4, 1), remove(0, 8, 1), add(0, 12, 2, 3)),
  },
  {
    name: "make a window read-only",
    given: [...targets, region(0, 16, 0, { holes: "fault" }), add(0, 2, 3, 0), map(0)],
    request: map(0, { writable: false }),
  },
  {
    name: "move a region in a batch",
    given: [...targets, region(0, 4), add(0, 0, 4, 0), map(0)],
    request: batch(dispose(0), region(8, 4), add(1, 0, 4, 0), map(1)),
  },
  {
    name: "swap two regions in a batch",
    given: [...targets, region(0, 4), add(0, 0, 4, 0), region(0, 4), add(1, 0, 4, 3), map(0)],
    request: batch(unmap(0), map(1)),
  },
  {
    name: "do everything in a batch",
    overlap: "any",
    given: [...targets, ...fragments, map(0), map(3)],
    request: batch(
      map(1, { writable: false }),
      unmap(3),
      add(0, 0, 3, 3),
      map(2),
      { kind: "detachPartition", partition: 0 },
      region(18, 4, 7),
      add(4, 0, 4, 1),
      map(4),
      { kind: "addPartition", offset: 100, pin: true },
      { kind: "detachDmaTarget", target: 0 },
    ),
  },
  {
    name: "map private memory",
    given: [...targets, region(0, 8), add(0, 0, 3, "private"), add(0, 4, 2, 0)],
    request: map(0),
  },
  {
    name: "make private memory read-only",
    given: [...targets, region(0, 8), add(0, 0, 3, "private"), add(0, 4, 2, 0), map(0)],
    request: map(0, { writable: false }),
  },
  {
    name: "put a file beside private memory",
    given: [...targets, region(0, 8), add(0, 0, 3, "private"), map(0)],
    request: add(0, 3, 4, 1),
  },
  {
    name: "remove a part of private memory",
    given: [...targets, region(0, 8), add(0, 0, 5, "private"), map(0)],
    request: remove(0, 1, 2),
  },
  {
    name: "dispose a region with private memory",
    given: [...targets, region(0, 8), add(0, 0, 2, "private"), add(0, 2, 2, 0), add(0, 5, 2, "private"), map(0)],
    request: dispose(0),
  },
  {
    name: "unmap a region with private and copy-on-write memory",
    given: [...unpinned, region(0, 8), add(0, 0, 3, "private"), add(0, 4, 3, 0, { copyOnWrite: true }), map(0)],
    request: unmap(0),
  },
  {
    name: "map it again",
    given: [
      ...unpinned,
      region(0, 8),
      add(0, 0, 3, "private"),
      add(0, 4, 3, 0, { copyOnWrite: true }),
      map(0),
      unmap(0),
    ],
    request: map(0, { writable: false }),
  },
  {
    name: "switch two regions with private memory",
    given: [
      ...targets,
      region(0, 8, 0),
      add(0, 0, 8, "private"),
      map(0),
      region(0, 8, 1),
      add(1, 0, 4, "private"),
      add(1, 5, 2, 0),
      map(1),
    ],
    request: unmap(1),
  },
];
