import { DisposedError } from "../core/errors.ts";
import { MemoryRange, ownRange } from "../core/memory_range.ts";
import { type BackingLayout, layOutRam, nearest, RamLayoutError } from "../core/ram_layout.ts";
import type { MemoryPolicy } from "../core/targets.ts";
import type { RegionHandle } from "../regions/region_handle.ts";
import { internalsOf, type RegionManager } from "../regions/region_manager.ts";
import type { Report } from "../targets/report.ts";
import { inspectBacking, type InspectRamBacking } from "./inspect_guest.ts";
import { type OwnBacking, ramPolicy, ramRequest, ramSource } from "./ram_backing.ts";
import type { RamVisibility } from "./ram_visibility.ts";

/** The RAM of one backing. */
export interface RamBlock {
  readonly backing: OwnBacking;
  /** Its regions, which are switched one by one. */
  readonly regions: readonly RegionHandle[];
  /** Where in its file each region begins. */
  readonly pieces: readonly RamRegion[];
  /** Where it all lies in its file. */
  readonly layout: BackingLayout;
}

/** One region of RAM and where it lies in the file of its backing. */
export interface RamRegion {
  readonly region: RegionHandle;
  /** In bytes; of no meaning for private memory. */
  readonly fileOffset: number;
  readonly policy: MemoryPolicy;
}

/** What RAM depends on. */
export interface RamOptions {
  /** Where guest memory ends, in bytes. */
  readonly maxAddress: number;
  /** 0 to 255. */
  readonly priority: number;
  /** Whether there is memory behind host addresses, or stand-ins in a test. */
  readonly hasMemory: boolean;
  readonly report: Report;
}

/** All RAM of a guest: what there is, what comes, what goes, and how it is switched. */
export class Ram {
  readonly #regions: RegionManager;
  readonly #options: RamOptions;
  /** In the order they came. */
  #blocks: readonly RamBlock[] = [];
  /** The regions of `#listed`, which are `#blocks` as they were when somebody asked. */
  #list: readonly RegionHandle[] = [];
  #listed: readonly RamBlock[] | null = null;

  constructor(regions: RegionManager, options: RamOptions) {
    this.#regions = regions;
    this.#options = options;
  }

  /** Adds what has been laid out, all of it or nothing. */
  add(backings: readonly OwnBacking[], layouts: readonly BackingLayout[]): readonly RamBlock[] {
    return this.#regions.batch(() => {
      const added = backings.flatMap((backing, i) => {
        const layout = layouts[i];
        if (layout === undefined) return [];
        const pieces = this.#map(backing, layout);
        return [{ backing, regions: pieces.map(({ region }) => region), pieces, layout }];
      });
      this.#become([...this.#blocks, ...added]);
      return added;
    });
  }

  /**
   * Adds RAM of one backing.
   *
   * @throws {RamLayoutError} If its ranges do not fit its page size.
   * @throws {RegionOverlapError} If it overlaps RAM.
   */
  addOne(backing: OwnBacking): RamBlock {
    const present = this.#blocks.flatMap(({ backing: { name, ranges } }) => ranges.map((range) => ({ name, range })));
    const { maxAddress } = this.#options;
    const layouts = layOutRam([ramRequest(backing)], { maxAddress, x86Legacy: false, present });
    const [block] = this.add([backing], layouts);
    if (block === undefined) throw new DisposedError("The RAM");
    return block;
  }

  /** Takes a block away: at once, or not at all. */
  remove(block: RamBlock): void {
    this.#regions.batch(() => {
      for (const region of block.regions) region[Symbol.dispose]();
      this.#become(this.#blocks.filter((other) => other !== block));
    });
  }

  /** Takes a block away once nobody holds a lock on it; new locks are refused from now on. */
  async drain(block: RamBlock, signal: AbortSignal | undefined): Promise<void> {
    if (!this.has(block)) return;
    await internalsOf(this.#regions).drain(block.regions, signal, () => {
      if (this.has(block)) this.remove(block);
    });
  }

  /** Whether the block is still there. */
  has(block: RamBlock): boolean {
    return !this.#regions.disposed && this.#blocks.includes(block);
  }

  /** The ranges that are switched one by one, lowest first. */
  get ranges(): readonly MemoryRange[] {
    return this.#blocks.flatMap(({ regions }) => regions.map(({ range }) => range)).sort((a, b) => a.start - b.start);
  }

  /** All of it, by backing, in the order they came. */
  get blocks(): readonly RamBlock[] {
    return this.#blocks;
  }

  /** How each of `ranges` is switched, lowest first. */
  get visibility(): readonly { readonly range: MemoryRange; readonly to: RamVisibility }[] {
    const switched = this.regions.map(({ range, mapParams }) => {
      const to: RamVisibility = mapParams === null ? "unmapped" : mapParams.writable ? "read-write" : "read-only";
      return { range, to };
    });
    return switched.sort((a, b) => a.range.start - b.range.start);
  }

  /** Says that they are about to show other memory, whether they are visible or not: their list becomes another one. */
  renewed(): void {
    this.#listed = null;
  }

  /** The regions of all of it: the same list as long as they are the same, and show the same memory when hidden. */
  get regions(): readonly RegionHandle[] {
    if (this.#listed !== this.#blocks) {
      this.#listed = this.#blocks;
      this.#list = this.#blocks.flatMap(({ regions }) => regions);
    }
    return this.#list;
  }

  /** The backings, in the order they came. */
  inspect(): InspectRamBacking[] {
    return this.#blocks.map(({ backing }) => inspectBacking(backing));
  }

  /** Switches one of `ranges`. */
  setVisibility(range: MemoryRange, to: RamVisibility): void {
    const own = ownRange(range, "setRamVisibility");
    for (const { backing: { prefetch }, regions } of this.#blocks) {
      const region = regions.find(({ range }) => range.equals(own));
      if (region === undefined) continue;
      if (to === "unmapped") return region.unmap();
      if (to === "read-only" || to === "read-write") return region.map({ writable: to === "read-write", prefetch });
      throw new TypeError(`RAM can be "unmapped", "read-only" or "read-write", got ${JSON.stringify(to)}`);
    }
    const near = nearest(this.ranges, own, 3);
    const hint = near.length === 0 ? "there is no RAM" : `the nearest are ${near.join(", ")}`;
    throw new RamLayoutError(
      "not-a-ram-range",
      `${own} is not a whole RAM range, and only those can be switched; ${hint}`,
      own,
    );
  }

  /** The regions of one backing, mapped. */
  #map(backing: OwnBacking, layout: BackingLayout): RamRegion[] {
    const { copyOnWrite, prefetch } = backing;
    const { hasMemory, report } = this.#options;
    const source = ramSource(backing, layout, hasMemory);
    using _source = source === "private" ? null : source;
    const policy = ramPolicy(backing, layout, hasMemory, report);
    return layout.pieces.map(({ name, range, fileOffset }) => {
      const region = this.#regions.newRegion({ name, range, priority: this.#options.priority, type: "ram" });
      const rangeInRegion = new MemoryRange(0, range.length);
      region.addMapping({ rangeInRegion, mappable: source, fileOffset, copyOnWrite, policy });
      region.map({ prefetch });
      return { region, fileOffset, policy };
    });
  }

  /** Notes what there is, for as long as the request under way does not fail. */
  #become(blocks: readonly RamBlock[]): void {
    const old = this.#blocks;
    this.#blocks = blocks;
    internalsOf(this.#regions).whenDecided((committed) => {
      if (!committed) this.#blocks = old;
    });
  }
}
