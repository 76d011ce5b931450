import { checkSignal } from "../core/abort.ts";
import { LockSlots } from "../serving/lock_slots.ts";
import { MAP_FILE } from "../serving/process_layout.ts";
import { spawnWithSocket } from "../serving/spawn.ts";
import { ClientAccess } from "./client_access.ts";
import { ClientMemory } from "./client_memory.ts";
import { type ClientView, Connection } from "./connection.ts";
import { Hold } from "./hold.ts";
import { PageReader } from "./page_reader.ts";
import { ProcessHost } from "./process_host.ts";
import { ProcessLink, type SharedMemory } from "./process_link.ts";
import { RegionClient } from "./region_client.ts";
import type { ConnectOptions } from "./region_manager_client.ts";

/**
 * A region manager as seen from another process: the requests of a `RegionManagerClient`, and guest memory at addresses
 * of this process's own.
 *
 * The owner starts the process with `RegionManager.serveProcess`, which lets it inherit a socket. Files cross it both
 * ways: those of `addMapping` to the owner, those of guest memory to here. An access sees the memory map of its moment;
 * what a request took away is gone here when the request returns. Locks count in the owner, for as long as this process
 * lives. Private and copy-on-write memory is the owner's process's own, and "not-mapped" here.
 *
 * If the owner ends, everything throws `DisposedError`. If this process ends, its regions are removed and its locks
 * released. If it stands still in the middle of an access for longer than its deadline, it is cut off.
 *
 * The process needs `--allow-ffi` and nothing else. It is trusted with what it is given: it can write all of the files
 * that it gets, whatever the guest may do with them.
 *
 * @example In the owner
 * ```ts ignore
 * import { GuestMemoryManager, MemoryRange } from "membacking";
 *
 * using guest = GuestMemoryManager.create({ maxAddress: 0x10_0000, ram: [{ ranges: [new MemoryRange(0, 0x10_0000)] }] });
 * using served = guest.regions.serveProcess((fd) =>
 *   new Deno.Command(Deno.execPath(), { args: ["run", "--allow-ffi", "device.ts", String(fd)] }).spawn()
 * );
 * await served.child.status;
 * ```
 *
 * @example In the process
 * ```ts ignore
 * import { ProcessClient } from "membacking";
 *
 * using client = await ProcessClient.connect(Number(Deno.args[0]));
 * client.memory.writeUint32(0x1000, 42);
 * ```
 */
export class ProcessClient extends RegionClient {
  readonly #connection: Connection;

  private constructor(connection: Connection) {
    super(connection);
    this.#connection = connection;
  }

  /**
   * Connects by the descriptor that the process inherited. It stays open: when the client has been disposed, another one
   * can connect by it.
   *
   * @throws {DisposedError} If the owner is gone, or serves this process no longer.
   * @throws {TypeError} If a client is connected by the descriptor already.
   * @throws {OsError} If it is not open.
   * @throws The signal's reason, if it aborts first.
   */
  static async connect(fd: number, options: ConnectOptions = {}): Promise<ProcessClient> {
    if (!Number.isInteger(fd) || fd < 0 || fd > 0x7fff_ffff) throw new RangeError(`${fd} is not a file descriptor`);
    const { signal } = options;
    checkSignal(signal);
    const link = new ProcessLink(fd);
    try {
      const shared = await link.greet(signal);
      return new ProcessClient(new Connection(link, viewOf(shared, link)));
    } catch (error) {
      link.close();
      throw error;
    }
  }

  /**
   * Starts another process that the same owner serves, as `RegionManager.serveProcess` does. What that client does, and
   * how long it lives, has nothing to do with this one.
   *
   * @returns What `spawn` returned.
   * @throws {TypeError} If `spawn` returns a promise.
   */
  fork<T>(spawn: (fd: number) => T): T {
    this.#connection.check();
    const { child, socket } = spawnWithSocket(spawn);
    using _socket = socket;
    this.#connection.post({ kind: "serve", port: null }, [socket.fd]);
    return child;
  }
}

function viewOf(shared: SharedMemory, link: ProcessLink): ClientView {
  const { welcome, line, locks } = shared;
  const { length } = welcome;
  const hold = new Hold(line, () => link.isOwnerAlive(), link.isSameProcess);
  link.why = () => hold.closed;
  if (!welcome.hasMemory) return { hold, access: null, memory: null };
  const nodes = new Int32Array(shared.nodes, 0, MAP_FILE.words);
  const rows = new Float64Array(shared.rows, MAP_FILE.rows, MAP_FILE.numbers);
  const pages = new PageReader(length, nodes, rows);
  const host = new ProcessHost(length, welcome.alignment, (number) => link.file(number));
  const access = new ClientAccess({
    length,
    pages,
    slots: new LockSlots(line.words, locks),
    hold,
    host,
    marks: () => link.marks(length),
    released: () => {
      if (hold.isDraining) link.post({ kind: "released" });
    },
  });
  host.isLocked = (start, end) => access.isLocked(start, end);
  link.changed = (spans) => {
    try {
      hold.enter();
    } catch {
      return; // Served no longer.
    }
    try {
      host.letGo(spans.map(([start, end]) => ({ start, end })), pages);
    } finally {
      hold.leave();
    }
    link.post({ kind: "let-go" });
  };
  link.onClose = () => {
    if (!access.isUnlocked) return;
    for (const span of access.everLocked) host.keepReserved(span);
    host[Symbol.dispose]();
  };
  return { hold, access, memory: new ClientMemory(access, hold) };
}
