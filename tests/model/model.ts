/**
 * The region manager in the most naive way there is: an array of pages and a list of regions, everything recomputed by
 * scanning. Written from the documentation alone and without a glance at `src/`, so that the two agree only where both
 * are right. Addresses, lengths and offsets count pages, not bytes.
 *
 * @module
 */

/** What a request asks for. Regions, partitions and DMA targets are named by the order of their creation. */
export type Request =
  | NewRegion
  | { kind: "map"; region: number; writable: boolean; executable: boolean; prefetch: boolean }
  | { kind: "unmap"; region: number }
  | AddMapping
  | { kind: "removeMappings"; region: number; at: number; pages: number }
  | { kind: "disposeRegion"; region: number }
  | { kind: "addPartition"; offset: number; pin: boolean }
  | { kind: "detachPartition"; partition: number }
  | { kind: "addDmaTarget" }
  | { kind: "detachDmaTarget"; target: number }
  | Batch;

/** A region to create. */
export interface NewRegion {
  kind: "newRegion";
  start: number;
  pages: number;
  priority: number;
  type: "ram" | "device";
  holes: "exit" | "fault";
}

/** A mapping to add; `at` counts from the start of the region. */
export interface AddMapping {
  kind: "addMapping";
  region: number;
  at: number;
  pages: number;
  file: number | "private";
  filePage: number;
  writable: boolean;
  /** The number of a policy, 0 for none. */
  policy?: number;
  /** Whether written pages are the mapping's own. */
  copyOnWrite?: boolean;
}

/** Requests that become one. With `abandon` the callback throws after the last. */
export interface Batch {
  kind: "batch";
  requests: Request[];
  abandon: boolean;
}

/** A file that mappings are parts of. */
export interface ModelFile {
  readonly pages: number;
  readonly writable: boolean;
}

/** The names of the errors a request can be answered with. */
export type ErrorName =
  | "RegionOverlapError"
  | "MappingError"
  | "DisposedError"
  | "RangeError"
  | "Abandoned";

/** One page of one mapping. */
interface MappedPage {
  readonly file: number | "private";
  readonly filePage: number;
  readonly writable: boolean;
  readonly policy: number;
  readonly copyOnWrite: boolean;
  /** Which `addMapping` it came from. */
  readonly serial: number;
}

interface ModelRegion {
  readonly start: number;
  readonly pages: number;
  readonly priority: number;
  readonly type: "ram" | "device";
  readonly holes: "exit" | "fault";
  disposed: boolean;
  params: { writable: boolean; executable: boolean; prefetch: boolean } | null;
  /** One element per page of the region. */
  readonly mapped: (MappedPage | null)[];
}

interface ModelPartition {
  readonly offset: number;
  readonly pin: boolean;
  detached: boolean;
}

interface State {
  regions: ModelRegion[];
  partitions: ModelPartition[];
  dmaTargets: { detached: boolean }[];
  serial: number;
}

/** What is behind one page of the host address range. */
export interface Backing {
  readonly file: number | "private";
  readonly filePage: number;
  readonly writable: boolean;
  readonly policy: number;
  readonly copyOnWrite: boolean;
  readonly serial: number;
}

/** Whether memory lives in its mapping alone, so that it is lost with it. */
export function isOwn({ file, copyOnWrite }: Pick<Backing, "file" | "copyOnWrite">): boolean {
  return file === "private" || copyOnWrite;
}

/** What a guest may do with one page. */
export interface PageAccess {
  readonly writable: boolean;
  readonly executable: boolean;
}

/** What a device may do with one page. */
export interface DmaPage {
  readonly file: number | "private";
  readonly filePage: number;
  readonly writable: boolean;
  readonly type: "ram" | "device";
}

/** The naive region manager. */
export class Model {
  state: State = { regions: [], partitions: [], dmaTargets: [], serial: 0 };

  constructor(readonly pages: number, readonly overlap: "nested" | "any", readonly files: readonly ModelFile[]) {}

  /** Carries the request out, or changes nothing and says which errors are right answers to it. */
  apply(request: Request): ReadonlySet<ErrorName> {
    const before = this.copyState();
    const errors = this.#carryOutAll(request);
    if (errors.size === 0 && this.#pinsCopies()) errors.add("MappingError");
    if (errors.size > 0) this.state = before;
    return errors;
  }

  /** A copy of the state that does not change with it. */
  copyState(): State {
    const { regions, partitions, dmaTargets, serial } = this.state;
    return {
      regions: regions.map((region) => ({ ...region, mapped: [...region.mapped] })),
      partitions: partitions.map((partition) => ({ ...partition })),
      dmaTargets: dmaTargets.map((target) => ({ ...target })),
      serial,
    };
  }

  /** The region that wins `page`. */
  winner(page: number): ModelRegion | null {
    let best: ModelRegion | null = null;
    for (const region of this.state.regions) {
      if (region.disposed || region.params === null) continue;
      if (page < region.start || page >= region.start + region.pages) continue;
      // Earlier regions come first in the list, so an equal priority does not displace.
      if (best === null || region.priority > best.priority) best = region;
    }
    return best;
  }

  /** What the host address range must have at `page`. */
  backing(page: number): Backing | null {
    const region = this.winner(page);
    const mapped = region?.mapped[page - region.start];
    if (!region?.params || !mapped) return null;
    return { ...mapped, writable: mapped.writable && region.params.writable };
  }

  /** What the guest of a partition may do at `page`, before the partition's offset is added. */
  access(page: number): PageAccess | null {
    const region = this.winner(page);
    if (!region?.params) return null;
    const { writable, executable } = region.params;
    if (region.holes === "fault") return { writable, executable };
    const backing = this.backing(page);
    return backing && { writable: backing.writable, executable };
  }

  /** What a DMA target must have at `page`. */
  dma(page: number): DmaPage | null {
    const backing = this.backing(page);
    if (!backing) return null;
    return {
      file: isOwn(backing) ? "private" : backing.file,
      filePage: isOwn(backing) ? 0 : backing.filePage,
      writable: backing.writable,
      type: this.winner(page)!.type,
    };
  }

  /** The runs of pages a region is visible at, as `[start, end)`. */
  visible(region: number): [number, number][] {
    const runs: [number, number][] = [];
    for (let page = 0; page < this.pages; page++) {
      if (this.winner(page) !== this.state.regions[region]) continue;
      const last = runs.at(-1);
      if (last?.[1] === page) last[1]++;
      else runs.push([page, page + 1]);
    }
    return runs;
  }

  /**
   * How many kernel mappings the host address range takes, with a hole counted beyond either end: one more than there
   * are places where a page does not continue the one before.
   */
  hostMappings(): number {
    let count = 1;
    for (let page = 0; page <= this.pages; page++) {
      if (!continues(this.backing(page - 1), this.backing(page))) count++;
    }
    return count;
  }

  #carryOutAll(request: Request): Set<ErrorName> {
    if (request.kind !== "batch") {
      const errors = this.#mistakes(request);
      if (errors.size === 0) this.#carryOut(request);
      return errors;
    }
    for (const inner of request.requests) {
      const errors = this.#carryOutAll(inner);
      if (errors.size > 0) return errors;
    }
    return new Set(request.abandon ? ["Abandoned"] : []);
  }

  /** Whether a partition would pin copy-on-write memory, which would copy all of it. */
  #pinsCopies(): boolean {
    if (!this.state.partitions.some(({ pin, detached }) => pin && !detached)) return false;
    return Array.from({ length: this.pages }, (_, page) => this.backing(page)).some((backing) => backing?.copyOnWrite);
  }

  /** Everything that is wrong with a request. An implementation may report any one of them. */
  #mistakes(request: Exclude<Request, Batch>): Set<ErrorName> {
    const errors = new Set<ErrorName>();
    const { regions } = this.state;
    if ("region" in request && regions[request.region]!.disposed && request.kind !== "disposeRegion") {
      errors.add("DisposedError");
    }
    switch (request.kind) {
      case "newRegion": {
        if (request.pages === 0) errors.add("RangeError");
        if (request.start + request.pages > this.pages) errors.add("RangeError");
        if (request.priority < 0 || request.priority > 255) errors.add("RangeError");
        if (regions.some((other) => !other.disposed && !this.#mayOverlap(other, request))) {
          errors.add("RegionOverlapError");
        }
        break;
      }
      case "addMapping": {
        const file = request.file === "private" ? null : this.files[request.file]!;
        if (request.pages === 0) errors.add("RangeError");
        if (request.at + request.pages > regions[request.region]!.pages) errors.add("RangeError");
        if (file && request.filePage + request.pages > file.pages) errors.add("MappingError");
        if (file && request.writable && !file.writable && !request.copyOnWrite) errors.add("MappingError");
        const replaced = regions[request.region]!.mapped.slice(request.at, request.at + request.pages);
        if (replaced.some((page) => page !== null && isOwn(page))) errors.add("MappingError");
        break;
      }
      case "removeMappings": {
        if (request.pages === 0) errors.add("RangeError");
        if (request.at + request.pages > regions[request.region]!.pages) errors.add("RangeError");
        break;
      }
    }
    return errors;
  }

  /** The overlap rule of two live regions, page by page. */
  #mayOverlap(a: ModelRegion, b: NewRegion): boolean {
    const pagesOf = (region: { start: number; pages: number }) =>
      Array.from({ length: this.pages }, (_, page) => page >= region.start && page < region.start + region.pages);
    const inA = pagesOf(a);
    const inB = pagesOf(b);
    if (!inA.some((_, page) => inA[page] && inB[page])) return true;
    if (this.overlap === "any") return true;
    if (a.priority === b.priority) return inA.every((_, page) => inA[page] === inB[page]);
    const [higher, lower] = a.priority > b.priority ? [inA, inB] : [inB, inA];
    return lower.every((inside, page) => !inside || higher[page]);
  }

  #carryOut(request: Exclude<Request, Batch>): void {
    const { regions, partitions, dmaTargets } = this.state;
    switch (request.kind) {
      case "newRegion": {
        const { start, pages, priority, type, holes } = request;
        const mapped = Array.from({ length: pages }, () => null);
        regions.push({ start, pages, priority, type, holes, disposed: false, params: null, mapped });
        break;
      }
      case "map": {
        const { writable, executable, prefetch } = request;
        regions[request.region]!.params = { writable, executable, prefetch };
        break;
      }
      case "unmap":
        regions[request.region]!.params = null;
        break;
      case "addMapping": {
        const serial = ++this.state.serial;
        const { mapped } = regions[request.region]!;
        for (let i = 0; i < request.pages; i++) {
          const filePage = request.file === "private" ? 0 : request.filePage + i;
          const { file, writable, policy = 0 } = request;
          const copyOnWrite = file !== "private" && (request.copyOnWrite ?? false);
          mapped[request.at + i] = { file, filePage, writable, policy, copyOnWrite, serial };
        }
        break;
      }
      case "removeMappings":
        regions[request.region]!.mapped.fill(null, request.at, request.at + request.pages);
        break;
      case "disposeRegion":
        regions[request.region]!.disposed = true;
        break;
      case "addPartition":
        partitions.push({ offset: request.offset, pin: request.pin, detached: false });
        break;
      case "detachPartition":
        partitions[request.partition]!.detached = true;
        break;
      case "addDmaTarget":
        dmaTargets.push({ detached: false });
        break;
      case "detachDmaTarget":
        dmaTargets[request.target]!.detached = true;
        break;
    }
  }
}

/** Whether one kernel mapping can hold both a page and the next one. */
function continues(page: Backing | null, next: Backing | null): boolean {
  if (page === null || next === null) return page === next;
  if (page.file !== next.file || page.writable !== next.writable || page.policy !== next.policy) return false;
  if (isOwn(page) || isOwn(next)) return page.serial === next.serial;
  return page.filePage + 1 === next.filePage;
}
