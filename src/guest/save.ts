/**
 * Saving a guest's memory of one moment.
 *
 * ```
 *   hold vCPUs -> freeze -> [ live: they go on ] -> write the files that were frozen -> thaw -> publish
 * ```
 *
 * What is written is what the frozen files have: whoever writes guest memory meanwhile writes to pages of its own. A guest
 * that is frozen already stays so: its file is that of an earlier moment, and the pages written since are copied aside
 * while vCPUs are held. What cannot be frozen is written in one go while they are.
 *
 * @module
 */

import { Mappable } from "../../ffi/files/mappable.ts";
import { MappingError, MemoryLockedError } from "../core/errors.ts";
import { MemoryRange } from "../core/memory_range.ts";
import { PageSet } from "../core/page_set.ts";
import { isSameLayout, memoryLength, type SavedLayout } from "../core/snapshot_index.ts";
import { SnapshotError } from "../core/snapshot_error.ts";
import { internalsOf, type RegionManager } from "../regions/region_manager.ts";
import { chainOfSnapshot, Snapshot } from "../snapshots/snapshot.ts";
import { SnapshotWriter } from "../snapshots/snapshot_writer.ts";
import type { Copies } from "./copies.ts";
import { momentParts } from "./moment_parts.ts";
import type { Ram } from "./ram.ts";
import { saveableLayout } from "./saved_layout.ts";
import { Saving } from "./saving.ts";

/** How memory is saved. */
export interface SaveOptions {
  /** Stores only what differs from this snapshot, which has to be of the same layout. */
  readonly base?: Snapshot;
  /** The pages that may differ from `base`, such as a `DirtyTracker` says. Without it all memory is compared. */
  readonly pages?: PageSet;
  /** Whatever belongs to the moment besides memory, such as the state of vCPUs and devices, by name. */
  readonly state?: Readonly<Record<string, Uint8Array>>;
  /** Whether vCPUs go on as soon as memory is frozen, rather than when it is written; `false` by default. */
  readonly live?: boolean;
  /** Gives up; memory goes on as before, and nothing is left on the disk. */
  readonly signal?: AbortSignal;
  /** Is told how far it is, in bytes of RAM, the last time with `done === total`. */
  onProgress?(done: number, total: number): void;
}

/** What saving has to do with. */
export interface SavedGuest {
  readonly regions: RegionManager;
  readonly ram: Ram;
  readonly copies: Copies;
  readonly maxAddress: number;
  readonly x86Legacy: boolean;
}

/** Saves memory as `GuestMemoryManager.save` says. */
export async function saveMemory(directory: string, options: SaveOptions, guest: SavedGuest): Promise<Snapshot> {
  if (typeof directory !== "string") throw new TypeError("Memory is saved to the path of a new directory");
  const { base, live = false, signal } = options;
  const { ram, copies } = guest;
  const state = new Map(Object.entries(options.state ?? {}).map(([name, bytes]) => [name, new Uint8Array(bytes)]));
  const layout = saveableLayout(ram.blocks, guest);
  const parents = base === undefined ? [] : chainOfSnapshot(base);
  if (base !== undefined && !isSameLayout(parents[0]!.index.layout, layout)) {
    throw new SnapshotError(
      "layout",
      directory,
      `The base is of memory of another layout, ${directory} is not written`,
    );
  }
  const pages = options.pages === undefined ? null : inMemoryFile(options.pages, layout);
  signal?.throwIfAborted();
  const internals = internalsOf(guest.regions);
  const visibility = ram.visibility.flatMap(({ range: { start, end }, to }) =>
    to === "read-write" ? [] : [{ start, end, visibility: to }]
  );
  using writer = new SnapshotWriter(directory, { parent: base?.id ?? null, layout, visibility, state });
  using saving = new Saving(writer, layout, { ...options, pages, chain: parents });
  using held = new DisposableStack();
  held.use(internals.quiesce(ram.regions.map(({ range }) => range)));
  const freezes = copies.isFrozen ? "is frozen" : freeze(copies, live);
  try {
    using aside = Mappable.memfd("written since", Math.max(memoryLength(layout), 4096));
    const parts = momentParts(internals, ram.blocks, layout, freezes === "cannot be" ? null : aside);
    using _files = copies.holdFiles();
    if (live) held.dispose();
    if (freezes === "cannot be") saving.writeAtOnce(parts);
    else await saving.write(parts);
    writer.publish();
  } finally {
    if (freezes === "now" && !guest.regions.disposed) await thaw(guest, !live);
  }
  return await Snapshot.open(directory, { parents: parents.map((layer) => layer.directory) });
}

/** Whether memory has been frozen, or cannot be, which is an error where vCPUs are to go on meanwhile. */
function freeze(copies: Copies, live: boolean): "now" | "cannot be" {
  try {
    copies.freeze(true);
    return "now";
  } catch (error) {
    if (live || !(error instanceof MappingError)) throw error;
    return "cannot be";
  }
}

/** Thaws as soon as no lock is in the way: now, or at the release of one, without anybody waiting for it. */
async function thaw({ copies, regions }: SavedGuest, isHeld: boolean): Promise<void> {
  const attempt = (held: boolean): boolean => {
    try {
      copies.thaw(held);
      return true;
    } catch (error) {
      if (error instanceof MemoryLockedError) return false;
      throw error;
    }
  };
  if (attempt(isHeld)) return;
  const later = async () => {
    do await internalsOf(regions).nextRelease(undefined); while (!regions.disposed && !attempt(false));
  };
  await Promise.resolve();
  later().catch(() => {});
}

/** Pages by their places in the memory file instead of their GPAs. */
function inMemoryFile(pages: PageSet, layout: SavedLayout): PageSet {
  if (!(pages instanceof PageSet)) throw new TypeError("pages must be a PageSet");
  return PageSet.of(
    layout.backings.flatMap(({ ranges }) =>
      ranges.flatMap(({ start, end, offset }) =>
        [...pages.within(new MemoryRange(start, end))].map((run) => run.offsetBy(offset - start))
      )
    ),
  );
}
