/**
 * A guest's memory at moments: frozen, made shared again, rolled back.
 *
 * ```
 *            file             guest memory
 *   shared   [ a b c d ]      [ a b c d ]        a write goes to the file
 *   freeze   [ a b c d ]      [ a b c d ]        one mmap(MAP_PRIVATE) over the same file: the file is that moment
 *   ...      [ a b c d ]      [ a B c d ]        a write makes a page of the mapping's own
 *   rollback [ a b c d ]      [ a b c d ]        own pages are given up
 *   thaw     [ a B c d ]      [ a B c d ]        own pages are written to the file, which is mapped shared again
 * ```
 *
 * Nothing here counts bytes: what a freeze or a rollback costs depends on what was written, and on nothing else, unless
 * somebody else still needs the file that a frozen guest would have to change: then it gets a whole new one.
 *
 * @module
 */

import { fileOf, type Mappable } from "../../ffi/files/mappable.ts";
import { MembackingError, MemoryLockedError, ReentrancyError } from "../core/errors.ts";
import type { Mapping } from "../core/map/region.ts";
import { piecesIn } from "../core/map/view.ts";
import { MemoryRange } from "../core/memory_range.ts";
import { type Entry, RangeMap } from "../core/range_map.ts";
import type { Span } from "../core/span.ts";
import type { MemoryPolicy } from "../core/targets.ts";
import { mappableOf } from "../memory/file_backing.ts";
import { PageSet } from "../core/page_set.ts";
import type { RegionHandle } from "../regions/region_handle.ts";
import type { RegionInternals } from "../regions/region_internals.ts";
import { internalsOf, type RegionManager } from "../regions/region_manager.ts";
import { FrozenFiles } from "./frozen_files.ts";
import { Leftovers } from "./leftovers.ts";
import { imageOf, type NewImage } from "./image.ts";
import { dropOwnPages, ownPlaces } from "./own_pages.ts";
import type { Ram, RamBlock } from "./ram.ts";
import { checkFreezable } from "./freezable.ts";

/** What a part of a RAM region showed at the moment to go back to. */
interface BasePart extends Span {
  readonly region: RegionHandle;
  /** The file it showed copy-on-write, `null` for zeros. */
  readonly file: Mappable | null;
  /** File offset minus GPA, in bytes. */
  readonly delta: number;
  readonly policy: MemoryPolicy | undefined;
}

/** The moment to go back to. */
interface Base {
  readonly frozen: FrozenFiles;
  /** Whether it is there for the time of a save only, which nobody goes back to. */
  readonly isOfSave: boolean;
  readonly hold: Disposable;
  readonly parts: readonly BasePart[];
  /** Writes once more what was copied rather than mapped at that moment. */
  readonly patch: () => void;
  /** Where that is. */
  readonly copied: readonly Span[];
}

/** RAM that others can be made of: the files, and the blocks they belong to. */
export interface FrozenRam {
  readonly frozen: FrozenFiles;
  readonly blocks: readonly RamBlock[];
}

const NO_PATCH = () => {};

/** The moments of one guest. */
export class Copies implements Disposable {
  readonly #regions: RegionManager;
  readonly #internals: RegionInternals;
  readonly #ram: Ram;
  readonly #isPinned: () => boolean;
  #base: Base | null = null;
  /** Whether a freeze or thaw that failed has written to the file already what was to be gone back to. */
  #isSpoiled = false;
  /** Whether a freeze, a thaw or a rollback is under way, those who are told of it included. */
  #isBusy = false;
  readonly #leftovers = new Leftovers();

  constructor(regions: RegionManager, ram: Ram, isPinned: () => boolean) {
    this.#regions = regions;
    this.#internals = internalsOf(regions);
    this.#ram = ram;
    this.#isPinned = isPinned;
  }

  /** Whether there is a moment to go back to. */
  get isFrozen(): boolean {
    return this.#base !== null;
  }

  /**
   * Throws inside of what a freeze, a thaw or a rollback calls.
   *
   * @throws {ReentrancyError} The moment is half done.
   */
  checkIdle(): void {
    if (this.#isBusy) throw new ReentrancyError();
  }

  /** Keeps the files of the moment as they are until the result is disposed, whatever becomes of the moment. */
  holdFiles(): Disposable {
    return this.#base?.frozen.hold() ?? { [Symbol.dispose]() {} };
  }

  /** Says that RAM has been made of frozen files, so that they are what it can go back to. */
  adopt(frozen: FrozenFiles, patch: Base["patch"] = NO_PATCH, copied: readonly Span[] = []): void {
    this.#become(frozen, { patch, copied }, false);
  }

  /** Makes the present moment one that others can be made of. */
  freeze(): FrozenRam {
    return this.#freeze(false);
  }

  /** Makes memory copy-on-write until `endSave`, vCPUs being held already. */
  freezeForSave(): void {
    this.#freeze(true);
  }

  /**
   * Thaws what was frozen for the time of saves alone, unless another save still needs it, which thaws it then.
   *
   * @throws {MemoryLockedError} If another thread has a lock.
   */
  endSave(isHeld: boolean): void {
    const base = this.#base;
    if (base === null || !base.isOfSave || base.frozen.holders > 1) return;
    this.#thaw(base, isHeld);
  }

  #freeze(isForSave: boolean): FrozenRam {
    this.checkIdle();
    this.#closeLeftovers();
    const { blocks } = this.#ram;
    checkFreezable(this.#internals, blocks, this.#isPinned());
    using images = new DisposableStack();
    const made = blocks.map((block) => this.#image(block, images));
    // Own pages that have to be moved away are gone for a moment, which another thread could see.
    if (made.some(({ movesPages }) => movesPages)) this.#checkForeignLocks();
    // Before anybody is told of the request, who could get at the files until then.
    const frozen = new FrozenFiles(made.map(({ file }) => file));
    using _hold = frozen.hold();
    // RAM that those who are told add is none of this moment.
    const { regions } = this.#ram;
    this.#renew("freeze", blocks, made, true, isForSave);
    this.#become(frozen, { patch: NO_PATCH, copied: [] }, isForSave, regions);
    return { frozen, blocks };
  }

  /** Throws if a lock shows memory that may be written by a mapping of its own, which would go on with the file. */
  #checkAliases(): void {
    for (const { start, end } of this.#internals.locks()) {
      const pieces = piecesIn(this.#internals.state(), start, end);
      const writable = pieces.filter(({ value }) => value.writable).length;
      if (writable > 0 && writable < pieces.length) throw new MemoryLockedError(new MemoryRange(start, end));
    }
  }

  /** Makes memory shared again. */
  thaw(): void {
    const base = this.#base;
    if (base === null) return;
    if (base.frozen.holders > 1) {
      throw new MembackingError(
        base.isOfSave
          ? "Memory cannot be thawed while it is being saved, which thaws it when it ends"
          : "Memory cannot be thawed while a template or a clone of it is there, or it is being saved: dispose them first",
      );
    }
    this.#thaw(base, false);
  }

  #thaw(base: Base, isHeld: boolean): void {
    this.checkIdle();
    this.#closeLeftovers();
    this.#checkForeignLocks();
    const { blocks } = this.#ram;
    const frozen = blocks.filter((block) => this.#ownsCopies(block));
    using images = new DisposableStack();
    const made = frozen.map((block) => this.#image(block, images));
    base.frozen.thaw();
    try {
      this.#renew("thaw", frozen, made, false, isHeld);
    } catch (error) {
      base.frozen.freeze();
      throw error;
    }
    this.#base = null;
    this.#isSpoiled = false;
    base.hold[Symbol.dispose]();
  }

  /** Goes back to the latest moment. Returns the pages that are other ones now. */
  rollback(): PageSet {
    const base = this.#base;
    if (base === null || base.isOfSave) {
      throw new MembackingError(
        "There is nothing to roll back to, since memory was neither frozen, cloned nor restored",
      );
    }
    if (this.#isSpoiled) {
      throw new MembackingError(
        "A freeze or thaw that failed has written over what was to be rolled back to, freeze again",
      );
    }
    this.checkIdle();
    this.#closeLeftovers();
    const regions = this.#ram.regions;
    const parts = base.parts.filter(({ region }) => regions.includes(region));
    for (const { start, end } of parts) {
      const locked = this.#internals.lockedIn(start, end, false);
      if (locked !== undefined) throw new MemoryLockedError(new MemoryRange(locked.start, locked.end));
    }
    const added: Mapping[] = [];
    // There may be thousands of parts, and of mappings.
    const wanted = byGpa(parts.map((part) => ({ start: part.start, end: part.end, value: part })));
    const theirs = [...new Set(parts.map(({ region }) => region))];
    const renewals = theirs.flatMap((region) =>
      this.#internals.mappings(region).flatMap((entry) =>
        wanted.overlapping(entry.start, entry.end).flatMap(({ value: part }) => {
          if (showsAgain(entry.value, part)) return [];
          const start = Math.max(entry.start, part.start);
          const end = Math.min(entry.end, part.end);
          const mapping = this.#newMapping(start, end, part);
          added.push(mapping);
          this.#leftovers.mapping(mapping);
          return [{ region, start, end, mapping }];
        })
      )
    );
    const changed: Span[] = renewals.map(({ start, end }) => ({ start, end }));
    const renewed = byGpa(changed.map(({ start, end }) => ({ start, end, value: true })));
    const places = theirs.flatMap((region) => ownPlaces(this.#internals, region))
      .filter(({ start, end }) => !renewed.overlaps(start, end));
    const act = () => {
      // Hidden memory too: it shows again one day.
      for (const place of places) dropOwnPages(place, (run) => void changed.push(run));
    };
    const ranges = parts.map(({ start, end }) => new MemoryRange(start, end));
    const isPatched = base.patch !== NO_PATCH;
    // What is copied comes after the request, and neither vCPUs nor clients see any of it half done.
    using _held = isPatched ? this.#internals.quiesce(ranges) : null;
    const request = () =>
      this.#request("roll back", renewals, added, { hold: isPatched ? [] : ranges, keepsBytes: false, act });
    const doubt = this.#internals.doubtWritten(true);
    try {
      if (isPatched) {
        this.#internals.alone(() => {
          request();
          changed.push(...base.copied);
          base.patch();
        });
      } else request();
    } finally {
      // A rollback that fails on its way has given pages up all the same.
      for (const { start, end } of changed) this.#internals.markWritten(new MemoryRange(start, end));
      this.#internals.doubtWritten(doubt);
    }
    return PageSet.of(changed.map(({ start, end }) => new MemoryRange(start, end)));
  }

  /** Lets go of the moment. Memory stays as it is. */
  [Symbol.dispose](): void {
    this.#leftovers.close(() => false);
    this.#base?.hold[Symbol.dispose]();
    this.#base = null;
  }

  #become(
    frozen: FrozenFiles,
    copied: Pick<Base, "patch" | "copied">,
    isOfSave: boolean,
    regions: readonly RegionHandle[] = this.#ram.regions,
  ): void {
    this.#isSpoiled = false;
    using hold = new DisposableStack();
    hold.use(frozen.hold());
    // Handles of its own: those of the mappings go with them.
    const files = new Map<object, Mappable>();
    const keep = (file: Mappable): Mappable => {
      const known = files.get(fileOf(file));
      if (known !== undefined) return known;
      const own = hold.use(file.clone());
      files.set(fileOf(file), own);
      return own;
    };
    const parts = regions.flatMap((region) =>
      this.#internals.mappings(region).map(({ start, end, value }) => {
        const file = value.kind === "private" ? null : mappableOf(value);
        return {
          region,
          start,
          end,
          file: file === null ? null : keep(file),
          delta: value.delta,
          policy: value.policy,
        };
      })
    );
    this.#base?.hold[Symbol.dispose]();
    this.#base = { frozen, isOfSave, hold: hold.move(), parts, ...copied };
  }

  /** Closes what a request has left behind that was interrupted. */
  #closeLeftovers(): void {
    if (this.#leftovers.isEmpty) return;
    this.#internals.check();
    const kept = new Set(
      this.#ram.regions.flatMap((region) => this.#internals.mappings(region)).map(({ value }) => value),
    );
    this.#leftovers.close((mapping) => kept.has(mapping));
  }

  /** An image that goes with `images`, or, where even that is interrupted, with the next request. */
  #image(block: RamBlock, images: DisposableStack): NewImage {
    const image = images.use(imageOf(this.#internals, block, this.#isExclusive(block)));
    this.#leftovers.handle(image);
    return image;
  }

  #newMapping(
    start: number,
    end: number,
    { file, delta, policy }: Omit<BasePart, "region" | "start" | "end">,
  ): Mapping {
    const options = file === null
      ? { mappable: "private" as const }
      : { mappable: file, fileOffset: start + delta, copyOnWrite: true };
    return this.#internals.newMapping(start, end, { ...options, ...(policy !== undefined && { policy }) });
  }

  /** Maps all of `blocks` anew, over their images. */
  #renew(
    name: string,
    blocks: readonly RamBlock[],
    images: readonly NewImage[],
    copyOnWrite: boolean,
    isHeld: boolean,
  ): void {
    const added: Mapping[] = [];
    const renewals = blocks.flatMap(({ pieces }, i) =>
      pieces.map(({ region, fileOffset, policy }) => {
        const { start, end } = region.range;
        const mapping = this.#internals.newMapping(start, end, {
          mappable: images[i]!.file,
          fileOffset,
          copyOnWrite,
          policy,
        });
        added.push(mapping);
        this.#leftovers.mapping(mapping);
        return { region, start, end, mapping };
      })
    );
    this.#request(name, renewals, added, {
      hold: isHeld ? [] : renewals.map(({ region }) => region.range),
      keepsBytes: true,
      act: () => {
        // Now that clients are kept off, no lock can come any more.
        if (copyOnWrite) this.#checkAliases();
        if (!copyOnWrite || images.some(({ movesPages }) => movesPages)) this.#checkForeignLocks();
        for (const image of images) {
          this.#isSpoiled ||= image.writesOver === true;
          image.complete();
        }
      },
    });
  }

  /** Has RAM show other memory, hidden RAM as well, which those who list what is shareable cannot see. */
  #request(...request: Parameters<RegionInternals["renew"]>): void {
    this.#isBusy = true;
    try {
      this.#ram.renewed();
      this.#internals.renew(...request);
    } finally {
      this.#isBusy = false;
    }
  }

  /** Whether nobody but this guest shows the file of a block that it was frozen over, so that it may change. */
  #isExclusive(block: RamBlock): boolean {
    const base = this.#base;
    return base !== null && base.frozen.holders === 1 && this.#ownsCopies(block);
  }

  /** Whether a block shows files of the moment copy-on-write. */
  #ownsCopies({ pieces }: RamBlock): boolean {
    return this.#base?.parts.some(({ region }) => pieces.some((piece) => piece.region === region)) ?? false;
  }

  #checkForeignLocks(): void {
    for (const { range } of this.#ram.regions) {
      const locked = this.#internals.lockedIn(range.start, range.end, true);
      if (locked !== undefined) throw new MemoryLockedError(new MemoryRange(locked.start, locked.end));
    }
  }
}

/** Whether a mapping shows what `part` says once its own pages are given up. */
function showsAgain(mapping: Mapping, { file, delta }: BasePart): boolean {
  if (file === null) return mapping.kind === "private";
  return mapping.kind === "copy-on-write" && mapping.delta === delta && mapping.backing?.file === fileOf(file);
}

/** Entries that do not overlap, to be looked up. */
function byGpa<V>(entries: readonly Entry<V>[]): RangeMap<V> {
  let map: RangeMap<V> = RangeMap.EMPTY;
  for (const { start, end, value } of entries) map = map.set(start, end, value);
  return map;
}
