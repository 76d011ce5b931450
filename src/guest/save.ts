/**
 * Saving a guest's memory of one moment.
 *
 * ```
 *   hold vCPUs -> freeze -> [ live: they go on ] -> write the files that were frozen -> thaw -> publish
 * ```
 *
 * What is written is what the frozen files have: whoever writes guest memory meanwhile writes to pages of its own. A guest
 * that is frozen already stays so: its file is that of an earlier moment, and the pages written since are copied aside
 * while vCPUs are held, as is RAM that came since. What cannot be frozen is written in one go while they are.
 *
 * A freeze for the time of a save is nobody's moment to go back to. Saves may overlap: the last one thaws.
 *
 * @module
 */

import { Mappable } from "../../ffi/files/mappable.ts";
import { MappingError, MembackingError, MemoryLockedError } from "../core/errors.ts";
import { MemoryRange } from "../core/memory_range.ts";
import { PageSet } from "../core/page_set.ts";
import { isSameLayout, memoryLength, type SavedLayout } from "../core/snapshot_index.ts";
import { SnapshotError } from "../core/snapshot_error.ts";
import { internalsOf, type RegionManager } from "../regions/region_manager.ts";
import { openSnapshotOver, retainChain, type Snapshot } from "../snapshots/snapshot.ts";
import { SnapshotWriter } from "../snapshots/snapshot_writer.ts";
import type { Copies } from "./copies.ts";
import { momentParts } from "./moment_parts.ts";
import type { Ram } from "./ram.ts";
import type { Report } from "../targets/report.ts";
import { checkSaveOptions } from "./save_options.ts";
import type { SaveOptions } from "./save_options.ts";
import { saveableLayout } from "./saved_layout.ts";
import { Saving } from "./saving.ts";

/** What saving has to do with. */
export interface SavedGuest {
  readonly regions: RegionManager;
  readonly ram: Ram;
  readonly copies: Copies;
  readonly maxAddress: number;
  readonly x86Legacy: boolean;
  readonly report: Report;
}

/** Saves memory as `GuestMemoryManager.save` says. */
export async function saveMemory(directory: string, options: SaveOptions, guest: SavedGuest): Promise<Snapshot> {
  checkSaveOptions(directory, options);
  const { base, live = false, signal } = options;
  const { ram, copies } = guest;
  const internals = internalsOf(guest.regions);
  internals.checkAlone("save");
  const state = new Map(Object.entries(options.state ?? {}).map(([name, bytes]) => [name, new Uint8Array(bytes)]));
  const layout = saveableLayout(ram.blocks, guest);
  using retained = new DisposableStack();
  const parents = base === undefined ? [] : retainChain(base, retained);
  if (base !== undefined && !isSameLayout(parents[0]!.index.layout, layout)) {
    throw new SnapshotError(
      "layout",
      directory,
      `The base is of memory of another layout, ${directory} is not written`,
    );
  }
  const pages = options.pages === undefined ? null : inMemoryFile(options.pages, layout);
  signal?.throwIfAborted();
  const visibility = ram.visibility.flatMap(({ range: { start, end }, to }) =>
    to === "read-write" ? [] : [{ start, end, visibility: to }]
  );
  copies.checkIdle();
  using writer = new SnapshotWriter(directory, { parent: base?.id ?? null, layout, visibility, state });
  using saving = new Saving(writer, layout, { ...options, pages, chain: parents });
  using held = new DisposableStack();
  held.use(internals.quiesce(ram.regions.map(({ range }) => range)));
  if (!isSameLayout(layout, saveableLayout(ram.blocks, guest))) {
    throw new MembackingError("RAM has come or gone while vCPUs were being held, save again");
  }
  const wasFrozen = copies.isFrozen;
  const isFrozen = wasFrozen || freeze(copies, live);
  try {
    using aside = Mappable.memfd("written since", Math.max(memoryLength(layout), 4096));
    using handles = new DisposableStack();
    const own = wasFrozen ? "copied" : isFrozen ? "later" : "in place";
    // Clients write as vCPUs do, and no hook holds them.
    const parts = internals.alone(() => {
      const parts = momentParts(internals, ram.blocks, layout, aside, own, handles);
      if (!isFrozen) saving.writeAtOnce(parts);
      return parts;
    });
    using _files = copies.holdFiles();
    if (live) held.dispose();
    if (isFrozen) await saving.write(parts);
    else saving.tellDone();
    signal?.throwIfAborted();
    writer.publish();
  } finally {
    thaw(guest, !live && !held.disposed);
  }
  return openSnapshotOver(writer.directory, parents);
}

/** Whether memory has been frozen; that it cannot be is an error where vCPUs are to go on meanwhile. */
function freeze(copies: Copies, live: boolean): boolean {
  try {
    copies.freezeForSave();
    return true;
  } catch (error) {
    if (live || !(error instanceof MappingError)) throw error;
    return false;
  }
}

/**
 * Thaws as soon as no lock is in the way: now, or at the release of one, without anybody waiting for it. The snapshot is
 * there or not by now, which nothing here changes.
 */
function thaw({ copies, regions, report }: SavedGuest, isHeld: boolean): void {
  const attempt = (held: boolean): boolean => {
    try {
      if (!regions.disposed) copies.endSave(held);
      return true;
    } catch (error) {
      if (error instanceof MemoryLockedError) return false;
      report(
        "error",
        "Memory stays copy-on-write after a save, until the next one or thaw(): it cannot be thawed",
        error,
      );
      return true;
    }
  };
  const later = async () => {
    do await internalsOf(regions).nextRelease(undefined); while (!attempt(false));
  };
  // That the manager is disposed ends the waiting.
  if (!attempt(isHeld)) later().catch(() => {});
}

/** Pages by their places in the memory file instead of their GPAs. */
function inMemoryFile(pages: PageSet, layout: SavedLayout): PageSet {
  return PageSet.of(
    layout.backings.flatMap(({ ranges }) =>
      ranges.flatMap(({ start, end, offset }) =>
        [...pages.within(new MemoryRange(start, end))].map((run) => run.offsetBy(offset - start))
      )
    ),
  );
}
