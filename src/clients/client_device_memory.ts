import { checkBoolean } from "../core/check_boolean.ts";
import { DisposedError } from "../core/errors.ts";
import { touchedIn } from "../core/map/edits.ts";
import type { Mapping } from "../core/map/region.ts";
import { checkAligned, MemoryRange } from "../core/memory_range.ts";
import { RangeMap } from "../core/range_map.ts";
import { checkDeviceMapping, checkDeviceMemory, rangeInDevice } from "../guest/device_checks.ts";
import type { DeviceMapping, DeviceMemoryOptions } from "../guest/device_options.ts";
import { closeFile, FileBacking, mappableOf, releaseFiles } from "../memory/file_backing.ts";
import type { Json } from "../serving/error_data.ts";
import type { ChangeRequest } from "../serving/protocol.ts";
import type { ClientRequests } from "./client_region_handle.ts";
import { addMappingRequest, newRegionRequest, rangesFrom } from "./requests.ts";

/** Stands for the region that a batch makes, in the requests of that batch. */
const NEW = -1;

/**
 * Memory of a device that a `RegionManagerClient` or a `ProcessClient` has made: a `DeviceMemory` with `await`.
 *
 * Its requests are made one after the other, in the order of the calls, each as one request of the owner: all or nothing.
 * They are no part of the client's own batches. When the client is disposed, the guest loses the memory.
 *
 * @example Usage
 * ```ts
 * import { GuestMemoryManager, MemoryRange, RegionManagerClient } from "membacking";
 *
 * using guest = GuestMemoryManager.create({
 *   maxAddress: 0x20_0000,
 *   ram: [{ ranges: [new MemoryRange(0, 0x10_0000)] }],
 * });
 * const { port1, port2 } = new MessageChannel();
 * using _served = guest.regions.serve(port1);
 * using client = await RegionManagerClient.connect(port2);
 *
 * await using bar = client.newDeviceMemory("bar 0", 0x4000);
 * await bar.map({ offset: 0, mappable: await client.memfd("bar 0", 0x4000) });
 * await bar.mapToGuest(0x10_0000, true);
 * client.memory.writeUint32(0x10_0000, 42);
 * await bar.mapToGuest(0x18_0000, true);
 * console.assert(guest.memory.readUint32(0x18_0000) === 42);
 * ```
 */
export class ClientDeviceMemory implements AsyncDisposable {
  /** What its region is called. */
  readonly name: string;
  /** Its length in bytes. */
  readonly length: number;
  readonly #requests: ClientRequests;
  readonly #holes: "exit" | "fault";
  readonly #priority: number;
  readonly #age: Promise<number>;
  /** What is mapped, by offset; the guest's region, if there is one, has the same. */
  #mappings: RangeMap<Mapping> = RangeMap.EMPTY;
  #region: { readonly id: number; readonly gpa: number } | null = null;
  #last: Promise<unknown> = Promise.resolve();
  #disposed = false;

  /** Made by `newDeviceMemory` of a client. */
  constructor(requests: ClientRequests, name: string, length: number, options: DeviceMemoryOptions) {
    const { holes, priority } = checkDeviceMemory(name, length, options);
    this.name = name;
    this.length = length;
    this.#requests = requests;
    this.#holes = holes;
    this.#priority = priority;
    // As old as this object, wherever it moves: of those that overlap at equal priority, the older one is visible.
    // SAFETY: the owner answers with a number.
    this.#age = requests.request({ kind: "next-age" }) as Promise<number>;
    this.#age.catch(() => {}); // Whoever needs it is told.
  }

  /** The GPA at which the guest has it, `null` where it has not; as of the last request that has been answered. */
  get gpa(): number | null {
    return this.#region?.gpa ?? null;
  }

  /** The GPA ranges at which the guest sees it, holes included. Empty while the guest does not have it. */
  get visible(): Promise<readonly MemoryRange[]> {
    return this.#next(async () => {
      if (this.#region === null) return [];
      return rangesFrom(await this.#requests.request({ kind: "visible", region: this.#region.id }));
    });
  }

  /** As `DeviceMemory.map`. The mappable may be disposed at once. */
  async map(mapping: DeviceMapping): Promise<void> {
    this.#check();
    const { range, mappable, fileOffset, writable, copyOnWrite } = checkDeviceMapping(mapping, this);
    if (copyOnWrite) {
      throw new TypeError("Clients cannot have device memory that is copy-on-write, make it at the owner");
    }
    const backing = new FileBacking(mappable);
    const own: Mapping = {
      ...{ kind: "shared", backing, own: null },
      ...{ delta: fileOffset - range.start, writable, policy: undefined },
    };
    await this.#next(async () => {
      try {
        if (this.#region !== null) {
          await this.#addMapping(this.#region.id, range, own, (change) => this.#change(change));
        }
      } catch (error) {
        closeFile(own);
        throw error;
      }
      this.#edit(range, own);
    }, () => closeFile(own));
  }

  /** As `DeviceMemory.unmap`. */
  async unmap(offset: number, length: number): Promise<void> {
    this.#check();
    const range = rangeInDevice(offset, length, this);
    await this.#next(async () => {
      if (this.#region !== null) {
        await this.#change({ kind: "remove-mappings", region: this.#region.id, range: [range.start, range.end] });
      }
      this.#edit(range, null);
    });
  }

  /** As `DeviceMemory.mapToGuest`. */
  async mapToGuest(gpa: number, writable: boolean): Promise<void> {
    checkAligned(gpa, `Address of device memory "${this.name}"`);
    checkBoolean(writable, "writable");
    const range = MemoryRange.of(gpa, this.length);
    await this.#next(async () => {
      const old = this.#region;
      if (old?.gpa === gpa) return void await this.#change({ kind: "map", region: old.id, params: { writable } });
      const changes: ChangeRequest[] = old === null ? [] : [{ kind: "remove", region: old.id }];
      const { name } = this;
      const isNew = { name, range, priority: this.#priority, type: "device", holes: this.#holes } as const;
      changes.push(newRegionRequest(isNew, await this.#age));
      for (const { start, end, value } of this.#mappings) {
        await this.#addMapping(NEW, new MemoryRange(start, end), value, (change) => void changes.push(change));
      }
      changes.push({ kind: "map", region: NEW, params: { writable } });
      // SAFETY: the owner answers with one value for each change, a region's id for a new region.
      const values = await this.#requests.request({ kind: "batch", changes }) as readonly Json[];
      this.#region = { id: values[old === null ? 0 : 1] as number, gpa };
    });
  }

  /** As `DeviceMemory.unmapFromGuest`. */
  async unmapFromGuest(): Promise<void> {
    await this.#next(() => this.#leaveGuest());
  }

  /**
   * Takes the memory away from the guest and gives the files up. Does nothing the second time.
   *
   * @throws {MemoryLockedError} If it is locked; it stays as it is, and disposal may be tried again.
   */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#disposed) return;
    await this.#next(async () => {
      if (!this.#requests.connection.closed) await this.#leaveGuest();
      this.#disposed = true;
      this.#edit(new MemoryRange(0, this.length), null);
    });
  }

  async #leaveGuest(): Promise<void> {
    if (this.#region === null) return;
    await this.#change({ kind: "remove", region: this.#region.id });
    this.#region = null;
  }

  /** Makes the request to map a piece. The device memory's own handle keeps its file open until it is answered. */
  async #addMapping(
    region: number,
    rangeInRegion: MemoryRange,
    mapping: Mapping,
    make: (change: ChangeRequest) => unknown,
  ): Promise<void> {
    const mappable = mappableOf(mapping);
    if (mappable === null) return;
    const fileOffset = rangeInRegion.start + mapping.delta;
    const options = { rangeInRegion, mappable, fileOffset, writable: mapping.writable };
    await make(addMappingRequest(region, options, this.#requests.connection));
  }

  async #change(change: ChangeRequest): Promise<void> {
    await this.#requests.request(change);
  }

  /** Calls `act` once everything that was asked for before is over; `otherwise` where it is not called any more. */
  #next<T>(act: () => Promise<T>, otherwise: () => void = () => {}): Promise<T> {
    const done = this.#last.then(() => {
      if (!this.#disposed) return act();
      otherwise();
      throw new DisposedError(`Device memory "${this.name}"`);
    });
    this.#last = done.catch(() => {});
    return done;
  }

  #check(): void {
    if (this.#disposed) throw new DisposedError(`Device memory "${this.name}"`);
  }

  #edit({ start, end }: MemoryRange, mapping: Mapping | null): void {
    const { gone, split } = touchedIn(this.#mappings, start, end);
    this.#mappings = mapping === null ? this.#mappings.delete(start, end) : this.#mappings.set(start, end, mapping);
    releaseFiles(gone, split);
  }
}
