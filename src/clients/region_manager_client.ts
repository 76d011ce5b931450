import { connectPort, forkPort } from "./port_link.ts";
import type { Connection } from "./connection.ts";
import { RegionClient } from "./region_client.ts";

/** How a client connects. */
export interface ConnectOptions {
  /** Gives up where nobody serves the other end of the port. */
  readonly signal?: AbortSignal;
}

/**
 * A region manager as seen from another thread: the same requests, with `await`, and the same memory, at the same host
 * addresses.
 *
 * Disposing a client removes its regions, as soon as nobody holds a lock on them. So does the end of its thread, within
 * a moment. A thread that needs an answer before it goes on, such as one that runs a vCPU, uses a
 * `SyncRegionManagerClient`; another process, a `ProcessClient`.
 *
 * Files of `memfd` and `open` are the owner's, which lends them: a Worker that ends without disposing them leaks nothing.
 *
 * @example Usage
 * ```ts
 * import { Mappable, MemoryRange, RegionManager, RegionManagerClient, VaMapper } from "membacking";
 *
 * using va = VaMapper.reserve(0x10_0000);
 * using regions = new RegionManager(va);
 * const { port1, port2 } = new MessageChannel();
 * using _served = regions.serve(port1);
 *
 * // In a Worker, which was sent port2:
 * using client = await RegionManagerClient.connect(port2);
 * const region = await client.newRegion({ name: "bar", range: new MemoryRange(0x4000, 0x8000), priority: 1 });
 * using file = await client.memfd("bar", 0x4000);
 * await region.addMapping({ rangeInRegion: new MemoryRange(0, 0x4000), mappable: file });
 * await region.map({ writable: true });
 * client.memory.writeUint32(0x4000, 42);
 * console.assert(regions.memory.readUint32(0x4000) === 42);
 * ```
 */
export class RegionManagerClient extends RegionClient {
  readonly #connection: Connection;

  private constructor(connection: Connection) {
    super(connection);
    this.#connection = connection;
  }

  /**
   * Connects to the manager that serves the other end of `port`. The port is the client's from now on.
   *
   * @throws {DisposedError} If the manager is gone, or serves the port no longer.
   * @throws {TypeError} If the port is in use by another client, or by a manager.
   * @throws The signal's reason, if it aborts first.
   */
  static async connect(port: MessagePort, options: ConnectOptions = {}): Promise<RegionManagerClient> {
    const { connection } = await connectPort(port, { signal: options.signal });
    return new RegionManagerClient(connection);
  }

  /**
   * A port at which the same owner serves another client: transfer it to another Worker, which connects with it. What
   * that client does, and how long it lives, has nothing to do with this one.
   */
  fork(): MessagePort {
    return forkPort(this.#connection);
  }
}
