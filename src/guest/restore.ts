import { checkBoolean } from "../core/check_boolean.ts";
import { Mappable } from "../../ffi/files/mappable.ts";
import { writeZeros } from "../../ffi/host/private_pages.ts";
import { hex } from "../core/hex.ts";
import type { Mapping } from "../core/map/region.ts";
import { MemoryRange } from "../core/memory_range.ts";
import type { Entry } from "../core/range_map.ts";
import { SnapshotError } from "../core/snapshot_error.ts";
import { memoryLength, type SavedLayout, type SnapshotIndex } from "../core/snapshot_index.ts";
import { layersOf, restorePlan } from "../core/snapshot_layers.ts";
import type { RegionHandle } from "../regions/region_handle.ts";
import type { RegionInternals } from "../regions/region_internals.ts";
import { internalsOf, type RegionManager } from "../regions/region_manager.ts";
import { chainOfSnapshot, type Snapshot } from "../snapshots/snapshot.ts";
import type { SnapshotLayer } from "../snapshots/snapshot_chain.ts";
import type { Copies } from "./copies.ts";
import { checkReal } from "./freezable.ts";
import { FrozenFiles } from "./frozen_files.ts";
import type { GuestMemoryOptions, RestoreOptions } from "./options.ts";
import { ownPlaces } from "./own_pages.ts";
import type { Ram } from "./ram.ts";
import { offsetOf } from "./saved_layout.ts";

/** A manager that was made, as the rest of the package sees it. */
export interface MadeGuest<Guest extends Disposable> {
  readonly guest: Guest;
  readonly regions: RegionManager;
  readonly ram: Ram;
  readonly copies: Copies;
}

/** How many host mappings the runs of differences may take; what is left over is copied. */
const MAPPINGS = 4096;

/** Makes a guest's memory of a snapshot, as `GuestMemoryManager.restore` says. */
export function restoreSnapshot<Guest extends Disposable>(
  snapshot: Snapshot,
  options: RestoreOptions,
  make: (options: GuestMemoryOptions) => MadeGuest<Guest>,
): Guest {
  const { copyOnWrite = true, ...others } = options;
  checkBoolean(copyOnWrite, "copyOnWrite");
  const chain = chainOfSnapshot(snapshot);
  for (const layer of chain) checkLength(layer);
  const { layout, visibility } = chain.at(-1)!.index;
  const { maxAddress, x86Legacy } = layout;
  using files = new DisposableStack();
  const opened = copyOnWrite
    ? chain.map(({ memory }) => files.use(Mappable.fromFd(memory.fd, { fixedSize: true })))
    : [];
  const [full] = opened;
  const made = make({
    ...others,
    maxAddress,
    x86Legacy,
    ram: layout.backings.map(({ name, ranges }) => ({
      name,
      ranges: ranges.map(({ start, end }) => new MemoryRange(start, end)),
      ...(full !== undefined && { backing: full, copyOnWrite: true, fileOffset: ranges[0]?.offset ?? 0 }),
    })),
  });
  try {
    checkReal(made.regions);
    const places = placesIn(made, layout);
    if (full === undefined) fill(made, chain, places);
    else layOver(made, chain, opened, places, layout.backings.map(() => full));
    made.regions.batch(() => {
      for (const { start, end, visibility: to } of visibility) made.ram.setVisibility(new MemoryRange(start, end), to);
    });
    return made.guest;
  } catch (error) {
    made.guest[Symbol.dispose]();
    throw error;
  }
}

function checkLength({ memory, index }: SnapshotLayer): void {
  const expected = memoryLength(index.layout);
  const { size, path } = memory;
  if (size >= expected) return;
  throw new SnapshotError("truncated", path, `${path} has ${hex(size)} bytes, and should have ${hex(expected)}`);
}

/** A region, and where it is in the memory file. */
interface Placed {
  readonly region: RegionHandle;
  /** Offset minus GPA. */
  readonly delta: number;
}

function placesIn({ ram }: MadeGuest<Disposable>, layout: SavedLayout): Placed[] {
  return ram.regions.map((region) => ({ region, delta: offsetOf(layout, region.range.start) - region.range.start }));
}

/** The parts of `entries`, which are by offset in the memory file, by GPA in their regions. */
function* inRegions<V>(entries: Iterable<Entry<V>>, places: readonly Placed[]): Generator<Entry<V> & Placed> {
  for (const { start, end, value } of entries) {
    for (const { region, delta } of places) {
      const from = Math.max(start - delta, region.range.start);
      const to = Math.min(end - delta, region.range.end);
      if (from < to) yield { start: from, end: to, value, region, delta };
    }
  }
}

/** Reads all there is into memory of its own. */
function fill({ regions }: MadeGuest<Disposable>, chain: readonly SnapshotLayer[], places: readonly Placed[]): void {
  const { base } = internalsOf(regions);
  const layers = layersOf(chain.map(({ index }) => index));
  for (const { start, end, value, delta } of inRegions(layers, places)) {
    chain[value]!.memory.readTo(base + start, end - start, start + delta);
  }
}

/** Lays differences over the full snapshot, whose file the RAM shows already, and makes that the moment to go back to. */
function layOver(
  { regions, copies }: MadeGuest<Disposable>,
  chain: readonly SnapshotLayer[],
  files: readonly Mappable[],
  places: readonly Placed[],
  backings: readonly Mappable[],
): void {
  const internals = internalsOf(regions);
  const { mapped, copied } = restorePlan(chain.map(({ index }): SnapshotIndex => index), MAPPINGS);
  const added: Mapping[] = [];
  const renewals = [...inRegions(mapped, places)].map(({ start, end, value, region, delta }) => {
    const file = value === null ? null : files[value]!;
    const mapping = internals.newMapping(
      start,
      end,
      file === null ? { mappable: "private" } : { mappable: file, fileOffset: start + delta, copyOnWrite: true },
    );
    added.push(mapping);
    return { region, start, end, mapping };
  });
  internals.renew("restore", renewals, added, { hold: [], keepsBytes: false, act() {} });
  const runs = [...inRegions(copied, places)].sort((a, b) => a.start - b.start);
  const patch = () => copyRuns(internals, runs, chain);
  patch();
  copies.adopt(new FrozenFiles(backings), runs.length === 0 ? undefined : patch, runs);
}

/** Copies runs, which are in order, into the pages of guest memory's own, wherever they are. */
function copyRuns(
  internals: RegionInternals,
  runs: readonly (Entry<number | null> & Placed)[],
  chain: readonly SnapshotLayer[],
): void {
  const places = [...new Set(runs.map(({ region }) => region))]
    .flatMap((region) => ownPlaces(internals, region))
    .sort((a, b) => a.start - b.start);
  let next = 0;
  for (const { start, end, value, delta } of runs) {
    while (next < places.length && places[next]!.end <= start) next++;
    for (let i = next; i < places.length && places[i]!.start < end; i++) {
      const place = places[i]!;
      const first = Math.max(start, place.start);
      const length = Math.min(end, place.end) - first;
      const address = place.address + first - place.start;
      if (value === null) writeZeros(address, length);
      else chain[value]!.memory.readTo(address, length, first + delta);
    }
  }
}
