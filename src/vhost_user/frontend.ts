import { duplicateFd, UnixSocket } from "../../ffi/os/socket.ts";
import { checkNumber } from "../core/memory_range.ts";
import { serveBackend } from "./backend_requests.ts";
import type { Connection } from "./connection.ts";
import * as device from "./device_messages.ts";
import { VhostUserError } from "./errors.ts";
import { type Agreement, checkSuccessor, confirmed } from "./handshake.ts";
import { InflightMemory } from "./inflight.ts";
import { BackendLink } from "./link.ts";
import { EMPTY, encodeVringState } from "./message.ts";
import type { VhostUserOptions, VhostUserState } from "./options.ts";
import { bringBack, connected, open } from "./opening.ts";
import { F_LOG_ALL, F_PROTOCOL_FEATURES, F_RING_PACKED, KNOWN_PROTOCOL_FEATURES } from "./protocol.ts";
import { type ShmemWindow, ShmemWindows } from "./shmem.ts";
import { checkVringIndex, type VringOptions, vringParts, vringStart } from "./vring.ts";
import { nudge, type Vring, type VringState } from "./vrings.ts";

const DEFAULT_DEADLINE = 1000;

/** What the package's own parts share of a front end. */
export let linkOf: (frontend: VhostUserFrontend) => BackendLink;

/**
 * The front end of a device whose work is done by another process, the back end, over the vhost-user protocol.
 *
 * Use it in this order: `connect`, a `VhostUserMemory` as DMA target, `setFeatures`, `startVring` for each queue.
 * Nothing a back end does takes the owner down: what it says is checked, what it does not say in time is given up, and
 * each failure is a `VhostUserError`.
 *
 * @example Reads and writes of a disk, in a process of its own
 * ```ts ignore
 * using frontend = await VhostUserFrontend.connect("/run/disk.sock");
 * using memory = new VhostUserMemory(frontend);
 * using _attached = guest.regions.addDmaTarget(memory);
 * await frontend.setFeatures(frontend.features & driverFeatures);
 * await frontend.startVring(0, { size: 128, descriptor, available, used, kick, call });
 * ```
 */
export class VhostUserFrontend implements Disposable {
  static {
    linkOf = (frontend) => frontend.#link;
  }

  /** What messages call the device: the path of its socket. */
  readonly name: string;
  readonly #path: string | null;
  readonly #options: VhostUserOptions;
  readonly #link: BackendLink;
  readonly #shmem = new ShmemWindows();
  #inflight: InflightMemory | null = null;
  #isReconnecting = false;
  #disposed = false;

  private constructor(path: string | null, options: VhostUserOptions, connection: Connection, agreement: Agreement) {
    this.#path = path;
    this.name = path === null ? "vhost-user device" : `vhost-user device "${path}"`;
    this.#options = options;
    this.#link = new BackendLink(connection, agreement);
    this.#listen();
  }

  /**
   * Connects to the back end that listens at `path` and agrees with it on protocol features.
   *
   * @example Where nobody listens
   * ```ts
   * import { OsError } from "membacking";
   * import { VhostUserFrontend } from "membacking/vhost-user";
   *
   * try {
   *   using frontend = await VhostUserFrontend.connect("/run/nobody.sock", { patience: 20 });
   *   console.log(frontend.features);
   * } catch (error) {
   *   console.assert(error instanceof OsError && error.code === "ENOENT");
   * }
   * ```
   *
   * @throws {OsError} If nobody listens there (ECONNREFUSED, ENOENT) within `patience`, or it may not be reached.
   * @throws {VhostUserError} If whoever listens there does not speak vhost-user, or not in time.
   */
  static async connect(path: string, options: VhostUserOptions = {}): Promise<VhostUserFrontend> {
    return await VhostUserFrontend.#own(await connected(path, options.patience ?? 0), path, options);
  }

  /**
   * As `connect`, over a socket that is connected already, such as one end of a socketpair. The descriptor is
   * duplicated, and stays the caller's to close.
   *
   * @throws {OsError} If it is not open (EBADF).
   * @throws {VhostUserError} If whoever is at the other end does not speak vhost-user, or not in time.
   */
  static async fromFd(fd: number, options: VhostUserOptions = {}): Promise<VhostUserFrontend> {
    checkNumber(fd, "File descriptor");
    return await VhostUserFrontend.#own(UnixSocket.own(duplicateFd(fd)), null, options);
  }

  static async #own(socket: UnixSocket, path: string | null, options: VhostUserOptions): Promise<VhostUserFrontend> {
    const { deadline = DEFAULT_DEADLINE, protocolFeatures = KNOWN_PROTOCOL_FEATURES } = options;
    const { connection, agreement } = await open(socket, deadline, protocolFeatures);
    return new VhostUserFrontend(path, options, connection, agreement);
  }

  /** The virtio features that the back end offers, for the driver to choose from. */
  get features(): bigint {
    return this.#link.agreement.offered & ~(F_PROTOCOL_FEATURES | F_LOG_ALL);
  }

  /** The protocol features in use, as bits of `ProtocolFeature`. */
  get protocolFeatures(): bigint {
    return this.#link.agreement.protocolFeatures;
  }

  /** How many queues the back end can have, `null` where it does not say (MQ). */
  get queueCount(): number | null {
    return this.#link.agreement.queueCount;
  }

  /** How many memory regions the back end can hold. */
  get memorySlots(): number {
    return this.#link.rules.capacity;
  }

  /** How the back end is now. */
  get state(): VhostUserState {
    const state = this.#link.connection.look();
    return state === "open" ? "connected" : state === "gone" ? "disconnected" : state;
  }

  /** The vrings that were started and not stopped. */
  get vrings(): readonly { readonly index: number; readonly state: VringState }[] {
    if (this.state !== "connected") this.#link.vrings.lose();
    return [...this.#link.vrings].map(({ index, state }) => ({ index, state }));
  }

  /**
   * Tells the back end what the driver has chosen of `features`.
   *
   * @throws {RangeError} If something is chosen that is not offered.
   * @throws {VhostUserError} If the back end refuses.
   */
  async setFeatures(features: bigint): Promise<void> {
    if (typeof features !== "bigint") throw new TypeError("Features are bits of a bigint");
    const unknown = features & ~this.features;
    if (unknown !== 0n) throw new RangeError(`The back end does not offer the features 0x${unknown.toString(16)}`);
    const { connection } = this.#link;
    await confirmed(connection, this.#link.featuresMessage(features));
    this.#link.features = features;
  }

  /**
   * Starts a queue. Its addresses are GPAs.
   *
   * @throws {RangeError} If a number is out of its range, or the back end has not so many queues.
   * @throws {GuestMemoryError} If part of the ring is not in memory that the back end has.
   * @throws {VhostUserError} If the back end refuses, the queue runs already, or features were not chosen yet.
   */
  async startVring(index: number, ring: VringOptions): Promise<void> {
    const link = this.#link;
    if (link.features === null) {
      throw new VhostUserError("unsupported", "SET_VRING_KICK", "Choose features before a vring is started");
    }
    const parts = vringParts(index, ring, (link.features & F_RING_PACKED) !== 0n);
    if (this.queueCount !== null && index >= this.queueCount) {
      throw new RangeError(`The back end has ${this.queueCount} queues, there is no vring ${index}`);
    }
    const { base = 0, enabled = true } = ring;
    const vring: Vring = { index, ring: { ...ring }, parts, state: "running", base, enabled };
    const memory = link.checkVring(vring);
    link.vrings.add(vring);
    try {
      await device.confirmAll(link, vringStart(link.startOf(vring, memory)));
    } catch (error) {
      link.vrings.delete(vring);
      throw error;
    }
    nudge(ring.kick);
  }

  /**
   * Has the back end leave a queue alone.
   *
   * @returns The index of the next descriptor it would have taken, for `base` of `startVring`.
   * @throws {VhostUserError} `"refused"` if the queue was not started, `"disconnected"` if whoever had it is gone.
   */
  async stopVring(index: number): Promise<number> {
    const link = this.#link;
    const vring = this.#vring(index, "GET_VRING_BASE");
    link.vrings.delete(vring);
    if (vring.state === "suspended") return vring.base;
    return await link.connection.settled(link.askBase(index));
  }

  /**
   * Has the back end carry out what it finds in a queue, or not.
   *
   * @throws {VhostUserError} If the queue was not started, or the back end has no protocol features.
   */
  async setVringEnable(index: number, enabled: boolean): Promise<void> {
    const vring = this.#vring(index, "SET_VRING_ENABLE");
    if ((this.#link.agreement.offered & F_PROTOCOL_FEATURES) === 0n) {
      throw new VhostUserError("unsupported", "SET_VRING_ENABLE", "The back end enables its vrings by itself");
    }
    vring.enabled = enabled;
    if (vring.state !== "running") return;
    await device.confirm(this.#link, "SET_VRING_ENABLE", encodeVringState(index, enabled ? 1 : 0));
  }

  /**
   * Reads `length` bytes of the device's configuration space.
   *
   * @throws {RangeError} If that goes past the 256 bytes there can be.
   * @throws {VhostUserError} If the back end refuses, or has no configuration space.
   */
  getConfig(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
    return device.getConfig(this.#link, offset, length);
  }

  /**
   * Writes into the device's configuration space.
   *
   * @param options.migration Whether it is set up after a migration, so that fields the driver cannot write may be set.
   * @throws {RangeError} If that goes past the 256 bytes there can be.
   * @throws {VhostUserError} If the back end refuses, or has no configuration space.
   */
  setConfig(offset: number, content: Uint8Array, options: { migration?: boolean } = {}): Promise<void> {
    return device.setConfig(this.#link, offset, content, options.migration ?? false);
  }

  /** The virtio device status. @throws {VhostUserError} If the back end has none (STATUS). */
  getStatus(): Promise<number> {
    return device.getStatus(this.#link);
  }

  /** Sets the virtio device status. @throws {VhostUserError} If the back end has none (STATUS), or refuses. */
  setStatus(status: number): Promise<void> {
    return device.setStatus(this.#link, status);
  }

  /**
   * Resets the device: its queues are stopped, the features are to be chosen anew, and what the back end has mapped into
   * shared memory regions is gone. It keeps its memory.
   *
   * @throws {VhostUserError} If the back end cannot be reset (RESET_DEVICE), or refuses.
   */
  async resetDevice(): Promise<void> {
    this.#link.need("RESET_DEVICE", "RESET_DEVICE");
    await device.confirm(this.#link, "RESET_DEVICE", EMPTY);
    this.#link.vrings.clear();
    this.#link.features = null;
    this.#dropInflight();
    this.#clearShmem();
  }

  /**
   * Has the back end keep what it is working on in memory that outlives it, so that its successor goes on with it
   * (`reconnect`). To be called before queues are started.
   *
   * @throws {VhostUserError} If the back end cannot do that (INFLIGHT_SHMFD), refuses, or lies about that memory.
   */
  async trackInflight(options: { queues: number; queueSize: number }): Promise<void> {
    const { queues, queueSize } = options;
    this.#link.need("INFLIGHT_SHMFD", "GET_INFLIGHT_FD");
    const memory = await InflightMemory.get(this.#link.connection, queues, queueSize);
    this.#dropInflight();
    this.#inflight = memory;
  }

  /** Has a network back end announce a MAC address, after a migration. @throws {VhostUserError} If it cannot (RARP). */
  sendRarp(mac: Uint8Array): Promise<void> {
    return device.sendRarp(this.#link, mac);
  }

  /** Tells a network back end the MTU. @throws {VhostUserError} If it cannot be told (MTU), or refuses. */
  netSetMtu(mtu: number): Promise<void> {
    return device.netSetMtu(this.#link, mtu);
  }

  /**
   * The sizes in bytes of the shared memory regions the device wants to have, by their ids; 0 for one it does not use.
   *
   * @throws {VhostUserError} If the back end has none (SHMEM), or lies about them.
   */
  getShmemConfig(): Promise<readonly number[]> {
    return device.getShmemConfig(this.#link);
  }

  /**
   * Lets the back end map files into `window`, which the guest finds as shared memory region `shmid`. Whatever it maps
   * is taken away when the device is reset, when another back end takes its place, and when this is disposed.
   *
   * @param window A `DeviceMemory`, made with `holes: "fault"`.
   * @throws {VhostUserError} If the back end maps nothing (SHMEM).
   * @throws {TypeError} If the region has a window already.
   */
  provideShmem(shmid: number, window: ShmemWindow): void {
    this.#link.need("SHMEM", "SHMEM_MAP");
    this.#shmem.provide(shmid, window);
  }

  /**
   * Connects to the successor of a back end that is gone, and brings back everything: features, the memory table as it
   * is now, the log, what its predecessor was working on (`trackInflight`), and the queues. Each queue goes on behind
   * what has been used; what was taken and not yet used is taken again.
   *
   * If it fails, it may be tried again.
   *
   * @throws {VhostUserError} `"hung"` while a predecessor that was cut off is still there; `"unsupported"` if the
   * successor lacks features that are in use; `"refused"` if there is nothing to be brought back.
   * @throws {OsError} If nobody listens within `patience`.
   */
  async reconnect(options: { patience?: number } = {}): Promise<void> {
    const link = this.#link;
    const path = this.#path;
    if (this.#disposed || path === null) {
      throw new VhostUserError("refused", "", `${this.name} cannot be reconnected: it has no path, or was disposed`);
    }
    if (this.state === "connected" || this.#isReconnecting) {
      throw new VhostUserError("refused", "", `${this.name} is connected, or about to be`);
    }
    if (this.state === "cut off") {
      const message = `The back end of ${this.name} was cut off and is still there, end its process first`;
      throw new VhostUserError("hung", "", message, { cause: link.connection.error });
    }
    this.#isReconnecting = true;
    try {
      await this.#reconnect(path, options.patience ?? this.#options.patience ?? 0);
    } finally {
      this.#isReconnecting = false;
    }
  }

  async #reconnect(path: string, patience: number): Promise<void> {
    const link = this.#link;
    link.ready = false;
    link.vrings.lose();
    const { deadline = DEFAULT_DEADLINE } = this.#options;
    const socket = await connected(path, patience);
    const { connection, agreement } = await open(socket, deadline, link.agreement.protocolFeatures, (now) => {
      checkSuccessor(link.agreement, now, link.features ?? 0n, link.vrings.needed);
      if (this.#disposed) throw new VhostUserError("disconnected", "", `${this.name} has been disposed`);
    });
    this.#clearShmem();
    link.connection = connection;
    link.agreement = agreement;
    this.#listen();
    await bringBack(link, this.#inflight);
  }

  /** Closes the connection. What the back end has mapped is taken away. Does nothing the second time. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#link.connection[Symbol.dispose]();
    this.#link.memory?.lose();
    this.#link.vrings.clear();
    this.#dropInflight();
    this.#clearShmem();
  }

  #listen(): void {
    const link = this.#link;
    const { connection } = link;
    connection.onEnd = (error) => this.#ended(connection, error);
    const { backendSocket } = link.agreement;
    if (backendSocket === null) return;
    const { onConfigChange, onRefusal } = this.#options;
    link.listen(backendSocket, (message) =>
      serveBackend(message, {
        shmem: this.#shmem,
        mayMap: link.has("SHMEM"),
        onConfigChange,
        onRefusal: (request, error) => onRefusal?.(request, error),
      }));
  }

  #ended(connection: Connection, error: VhostUserError): void {
    if (this.#disposed || connection !== this.#link.connection) return;
    this.#link.vrings.lose();
    if (connection.state === "gone") this.#link.memory?.lose();
    this.#options.onDisconnect?.(error);
  }

  #vring(index: number, request: string): Vring {
    checkVringIndex(index);
    const vring = this.#link.vrings.get(index);
    if (vring !== undefined) return vring;
    throw new VhostUserError("refused", request, `Vring ${index} was not started`);
  }

  #dropInflight(): void {
    this.#inflight?.[Symbol.dispose]();
    this.#inflight = null;
  }

  #clearShmem(): void {
    for (const error of this.#shmem.clear()) this.#options.onRefusal?.("SHMEM_UNMAP", error);
  }
}
