import { checkBoolean } from "../core/check_boolean.ts";
import { absolutePath, nextData } from "../../ffi/files/disk_file.ts";
import { FileMapping } from "../../ffi/os/address_space.ts";
import { PROT_READ } from "../../ffi/os/mman.ts";
import { DisposedError } from "../core/errors.ts";
import { hex } from "../core/hex.ts";
import { SnapshotError } from "../core/snapshot_error.ts";
import { layoutBytes, memoryLength, type SnapshotIndex } from "../core/snapshot_index.ts";
import { gaps } from "../core/span.ts";
import { layersOf } from "../core/snapshot_layers.ts";
import { checksum, CHUNK } from "./format.ts";
import { runsOf } from "./pages.ts";
import { pause } from "./pause.ts";
import { chainOf, openLayer, readMemory, type SnapshotLayer } from "./snapshot_chain.ts";
import { checkNewDirectory, SnapshotWriter } from "./snapshot_writer.ts";

/** How a snapshot is opened. */
export interface SnapshotOpenOptions {
  /** Whether all its bytes, and those of its parents, are compared with their checksums; `false` by default. */
  readonly verify?: boolean;
  /** The directories of the snapshots that it is a difference to, in any order; more than are needed do no harm. */
  readonly parents?: readonly string[];
}

/** What `GuestMemoryManager` needs of a snapshot, beyond what users see. */
let chainIn: (snapshot: Snapshot) => readonly SnapshotLayer[];
let openOver: (directory: string, parents: readonly SnapshotLayer[]) => Snapshot;

/**
 * A snapshot of a guest's RAM in a directory: full, or the difference to another one. Made by
 * `GuestMemoryManager.save`, brought back by `GuestMemoryManager.restore`.
 *
 * Its files are open until it is disposed, so that removing the directory does no harm to what is restored from it. They are
 * mapped in place: whoever truncates one meanwhile has its readers killed by SIGBUS.
 */
export class Snapshot implements Disposable {
  static {
    chainIn = (snapshot) => {
      snapshot.#check();
      return snapshot.#chain;
    };
    openOver = (directory, parents) => {
      using undo = new DisposableStack();
      const layer = openLayer(directory);
      undo.use(layer.memory);
      const chain = [...parents.map((parent) => retained(parent, undo)), layer];
      undo.move();
      return new Snapshot(chain, layer.index);
    };
  }

  /** The full snapshot first, this one last. */
  readonly #chain: readonly SnapshotLayer[];
  readonly #index: SnapshotIndex;
  #disposed = false;

  private constructor(chain: readonly SnapshotLayer[], index: SnapshotIndex) {
    this.#chain = chain;
    this.#index = index;
  }

  /**
   * Opens the snapshot in `directory`.
   *
   * @throws {SnapshotError} If it is not whole, of another version, or lacks a parent; with `verify` also if a byte of it
   * is not what was saved. `kind` and `path` say which.
   * @throws {OsError} If a file cannot be read.
   */
  static async open(directory: string, options: SnapshotOpenOptions = {}): Promise<Snapshot> {
    const { verify = false, parents = [] } = options;
    if (typeof directory !== "string") throw new TypeError("A snapshot is opened by the path of its directory");
    checkBoolean(verify, "verify");
    if (!Array.isArray(parents) || !parents.every((path) => typeof path === "string")) {
      throw new TypeError("parents must be an array of the paths of directories");
    }
    using undo = new DisposableStack();
    const opened = [directory, ...parents].map((path) => {
      const layer = openLayer(path);
      undo.use(layer.memory);
      return layer;
    });
    const chain = chainOf(opened);
    const snapshot = new Snapshot(chain, chain[chain.length - 1]!.index);
    if (verify) await snapshot.verify();
    undo.move();
    for (const layer of opened) if (!chain.includes(layer)) layer.memory[Symbol.dispose]();
    return snapshot;
  }

  /** Unique in the world. */
  get id(): string {
    return this.#index.id;
  }

  /** The id of the snapshot it is the difference to, `null` for a full one. */
  get parent(): string | null {
    return this.#index.parent;
  }

  /** How much RAM it is of, in bytes. */
  get byteLength(): number {
    return layoutBytes(this.#index.layout);
  }

  /** How many bytes of pages it stores itself: neither its parents' nor pages of zeros. */
  get storedBytes(): number {
    return this.#index.stored.reduce((sum, { start, end }) => sum + end - start, 0);
  }

  /** What the VMM put beside, as copies. */
  get state(): ReadonlyMap<string, Uint8Array> {
    return new Map([...this.#index.state].map(([name, bytes]) => [name, bytes.slice()]));
  }

  /**
   * Reads all bytes of it and of its parents, and compares them with their checksums.
   *
   * @throws {SnapshotError} `"corrupt"` or `"truncated"`, naming the file and where in it.
   * @throws {DisposedError} If it has been disposed, also meanwhile.
   */
  async verify(): Promise<void> {
    for (const layer of this.#chain) {
      for (const { start, end, checksum: saved } of layer.index.stored) {
        await pause();
        this.#check();
        if (checksum(readMemory(layer, start, end)) !== saved) throw hasOtherBytes(layer, start, end);
      }
    }
    await this.#verifyHoles(this.#chain[0]!);
  }

  /** The full snapshot is mapped as it is, so what it does not store has to be zeros. */
  async #verifyHoles(full: SnapshotLayer): Promise<void> {
    const { memory: { fd }, index: { layout, stored } } = full;
    for (const hole of gaps(0, memoryLength(layout), stored)) {
      for (let at = hole.start; at < hole.end;) {
        await pause();
        this.#check();
        const start = nextData(fd, at, hole.end);
        at = Math.min(start + CHUNK, hole.end);
        if (start === at) continue;
        const words = new Int32Array(readMemory(full, start, at).buffer);
        if (runsOf(words).some(({ isZero }) => !isZero)) throw hasOtherBytes(full, start, at);
      }
    }
  }

  /**
   * Writes a full snapshot of the same memory to another directory, which then needs no parents.
   *
   * @throws {TypeError} If `directory` is no path.
   * @throws {SnapshotError} If there is something at `directory`, or bytes to be copied are not what was saved.
   * @throws {OsError} If the disk is full or fails.
   * @throws {DisposedError} If it has been disposed, also meanwhile.
   */
  async flatten(directory: string): Promise<Snapshot> {
    this.#check();
    checkNewDirectory(directory);
    const target = absolutePath(directory);
    // What is copied gets new checksums, so the old ones have their say first.
    await this.verify();
    const { layout, visibility, state } = this.#index;
    using writer = new SnapshotWriter(target, { parent: null, layout, visibility, state });
    {
      for (const { start, end, value } of layersOf(this.#chain.map(({ index }) => index))) {
        const layer = this.#chain[value]!;
        for (let at = start; at < end; at += CHUNK) {
          await pause();
          this.#check();
          using mapping = new FileMapping(layer.memory.fd, at, Math.min(CHUNK, end - at), PROT_READ);
          writer.store(new Uint8Array(mapping.bytes), mapping.address, at);
        }
      }
      writer.publish();
    }
    return await Snapshot.open(target);
  }

  /** Closes its files. Does nothing the second time. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    for (const { memory } of this.#chain) memory[Symbol.dispose]();
  }

  #check(): void {
    if (this.#disposed) throw new DisposedError("The snapshot");
  }
}

function hasOtherBytes({ memory: { path } }: SnapshotLayer, start: number, end: number): SnapshotError {
  return new SnapshotError(
    "corrupt",
    path,
    `${path} has other bytes from ${hex(start)} to ${hex(end)} than were saved`,
  );
}

/** A layer with its file open once more, until `stack` is disposed. */
function retained(layer: SnapshotLayer, stack: DisposableStack): SnapshotLayer {
  return { ...layer, memory: stack.use(layer.memory.clone()) };
}

/** The chain of a snapshot, which stays open until `stack` is disposed, whatever becomes of the snapshot. */
export function retainChain(snapshot: Snapshot, stack: DisposableStack): readonly SnapshotLayer[] {
  return chainIn(snapshot).map((layer) => retained(layer, stack));
}

/** Opens a snapshot that is the difference to the last of `parents`, or full where there are none. */
export function openSnapshotOver(directory: string, parents: readonly SnapshotLayer[]): Snapshot {
  return openOver(directory, parents);
}

/** The chain of a snapshot, the full one first and itself last. */
export function chainOfSnapshot(snapshot: Snapshot): readonly SnapshotLayer[] {
  return chainIn(snapshot);
}
