import { fileOf, Mappable } from "../../ffi/files/mappable.ts";
import { DisposedError, MemoryLockedError } from "../core/errors.ts";
import { MemoryRange } from "../core/memory_range.ts";
import type { Span } from "../core/span.ts";
import type { Logger } from "../targets/targets.ts";
import type { ClientFiles } from "./client_files.ts";
import type { Json } from "./error_data.ts";
import type { ChangeRequest, Ends, Request } from "./protocol.ts";
import type { ServedManager, ServedRegion } from "./served.ts";

/** How long to wait before a region that could not be removed is tried again, in milliseconds; doubled each time. */
const RETRY_AFTER = 100;
const RETRIES = 8;

/** How many characters the name of a client's region has at most: all who read the map read it. */
const LONGEST_NAME = 2 ** 16;

/** What a request comes to. */
export interface Outcome {
  readonly value: Json;
  /** A file that goes with the answer to another process. */
  readonly file?: Mappable;
}

const NOTHING: Outcome = { value: null };

/** The regions that one client has made, and its requests about them. */
export class ClientRegions {
  readonly #manager: ServedManager;
  readonly #files: ClientFiles;
  readonly #logger: Logger;
  readonly #regions = new Map<number, ServedRegion>();
  /** The ages that were asked for, and the id of the region that has each, `null` for none. */
  #ages: ReadonlyMap<number, number | null> = new Map();

  constructor(manager: ServedManager, files: ClientFiles, logger: Logger) {
    this.#manager = manager;
    this.#files = files;
    this.#logger = logger;
  }

  /** Where they are. */
  get spans(): Span[] {
    return [...this.#regions.values()].map(({ range: { start, end } }) => ({ start, end }));
  }

  /** Does what is asked for; throws what the manager throws. */
  serve(request: Exclude<Request, { kind: "teardown" }>): Outcome {
    switch (request.kind) {
      case "batch":
        return { value: this.#changes(request.changes, (act) => this.#manager.batch(act)) };
      case "map-params": {
        const params = this.#region(request.region).mapParams;
        return { value: params === null ? null : { ...params } };
      }
      case "visible":
        return { value: this.#region(request.region).visible.map(({ start, end }) => [start, end]) };
      case "next-age": {
        const age = this.#manager.nextAge();
        this.#ages = new Map(this.#ages).set(age, null);
        return { value: age };
      }
      case "regions":
        return { value: this.#manager.regions() };
      case "inspect":
        return { value: this.#manager.inspect() };
      case "memfd":
        return this.#lend(() => Mappable.memfd(request.name, request.size, this.#believed(request.options)));
      case "open":
        return this.#lend(() => Mappable.open(request.path, this.#believed(request.options)));
      case "new-region":
        return { value: this.#changes([request], (act) => act())[0] ?? null };
      case "remove":
        this.#changes([request], (act) => act());
        return NOTHING;
      default:
        this.#change(this.#region(request.region), request);
        return NOTHING;
    }
  }

  /** Where a region shows; nowhere if it is gone. */
  shown(region: number): readonly Span[] {
    return this.#regions.get(region)?.visible ?? [];
  }

  /** Removes a region at once. Gone is gone. */
  remove(region: number): void {
    this.#regions.get(region)?.[Symbol.dispose]();
    this.#regions.delete(region);
  }

  /** Removes a region once nobody holds a lock on it. Gone is gone, as for a handle of the owner's own. */
  async teardown(region: number, signal: AbortSignal): Promise<void> {
    const handle = this.#regions.get(region);
    if (handle === undefined) return;
    await handle.teardown({ signal });
    this.#regions.delete(region);
  }

  /** Removes all of them, each as soon as nobody holds a lock on it. */
  removeAll(): void {
    const regions = [...this.#regions.values()].reverse();
    this.#regions.clear();
    for (const region of regions) this.#drop(region, 0);
  }

  /** Makes changes, inside `how`, and keeps account of the regions that came and went. */
  #changes(requests: readonly ChangeRequest[], how: (act: () => void) => void): Json[] {
    const created: ServedRegion[] = [];
    const removed: number[] = [];
    const values: Json[] = [];
    const ages = new Map(this.#ages);
    how(() => {
      for (const request of requests) {
        if (request.kind === "new-region") {
          const { range, age, ...rest } = request.options;
          if (typeof rest.name === "string" && rest.name.length > LONGEST_NAME) throw nameTooLong(rest.name);
          if (age !== undefined && ages.get(age) !== null) throw new RangeError(`Age ${age} is not free`);
          const region = this.#manager.newRegion({ ...rest, range: rangeOf(range) }, age);
          if (age !== undefined) ages.set(age, region.id);
          created.push(region);
          values.push(region.id);
        } else {
          const region = request.region < 0 ? created[-1 - request.region] : this.#region(request.region);
          if (region === undefined) throw new RangeError(`The batch has made no region ${-1 - request.region}`);
          this.#change(region, request);
          if (request.kind === "remove") {
            removed.push(region.id);
            if (request.eventually !== true) free(ages, region.id);
          }
          values.push(null);
        }
      }
    });
    for (const region of created) this.#regions.set(region.id, region);
    for (const id of removed) this.#regions.delete(id);
    this.#ages = ages;
    return values;
  }

  #change(region: ServedRegion, request: Exclude<ChangeRequest, { kind: "new-region" }>): void {
    switch (request.kind) {
      case "map":
        return region.map(request.params);
      case "unmap":
        return region.unmap();
      case "add-mapping": {
        const { range, file, fileOffset = 0, writable = true, copyOnWrite = false, policy } = request;
        const mappable = file === "private" ? file : this.#files.get(file);
        const mapping = { rangeInRegion: rangeOf(range), mappable, fileOffset, writable, copyOnWrite };
        return region.addMapping(policy === undefined ? mapping : { ...mapping, policy });
      }
      case "remove-mappings":
        return region.removeMappings(rangeOf(request.range));
      case "remove":
        if (request.eventually === true) return this.#drop(region, 0);
        return region[Symbol.dispose]();
    }
  }

  #region(id: number): ServedRegion {
    const region = this.#regions.get(id);
    if (region === undefined) throw new DisposedError(`Region ${id}`);
    return region;
  }

  /** The options of a file as far as a client is believed: not another process that says nobody will make it shorter. */
  #believed<T extends object>(options: T): T {
    return this.#files.isSameProcess ? options : { ...options, fixedSize: false };
  }

  #lend(make: () => Mappable): Outcome {
    const { key, file } = this.#files.lend(make);
    return { value: { key, fd: fileOf(file).fd, label: fileOf(file).label }, file };
  }

  /** Removes a region now, or as soon as nobody holds a lock on it; what fails otherwise is tried again. */
  #drop(region: ServedRegion, tries: number): void {
    const again = (error: unknown) => {
      if (error instanceof DisposedError) return;
      this.#logger.warn(`Region "${region.name}" of a client could not be removed`, error);
      if (tries < RETRIES) Deno.unrefTimer(setTimeout(() => this.#drop(region, tries + 1), RETRY_AFTER * 2 ** tries));
    };
    try {
      region[Symbol.dispose]();
    } catch (error) {
      if (error instanceof MemoryLockedError) region.teardown().catch(again);
      else again(error);
    }
  }
}

/** Says that the region with this id is gone. */
function free(ages: Map<number, number | null>, id: number): void {
  for (const [age, holder] of ages) if (holder === id) ages.set(age, null);
}

function nameTooLong({ length }: string): RangeError {
  return new RangeError(`The name of a client's region has at most ${LONGEST_NAME} characters, got ${length}`);
}

function rangeOf([start, end]: Ends): MemoryRange {
  return new MemoryRange(start, end);
}
