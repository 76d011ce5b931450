import { checkBoolean } from "../core/check_boolean.ts";
import { checkSignal } from "../core/abort.ts";
import { isPageSet, type PageSet } from "../core/page_set.ts";
import { checkNewDirectory } from "../snapshots/snapshot_writer.ts";
import { Snapshot } from "../snapshots/snapshot.ts";

/** How memory is saved. */
export interface SaveOptions {
  /** Stores only what differs from this snapshot, which has to be of the same layout. */
  readonly base?: Snapshot;
  /**
   * The pages that may differ from `base`, such as a `DirtyTracker` says. Without it all memory is compared.
   *
   * What is written between the `take` and the moment of the save is in neither: hold vCPUs over both, and leave `pages` out
   * where clients or devices go on writing. The next `take` has those pages.
   */
  readonly pages?: PageSet;
  /** Whatever belongs to the moment besides memory, such as the state of vCPUs and devices, by name. */
  readonly state?: Readonly<Record<string, Uint8Array>>;
  /** Whether vCPUs go on as soon as memory is frozen, rather than when it is written; `false` by default. */
  readonly live?: boolean;
  /** Gives up; memory goes on as before, and nothing is left on the disk. */
  readonly signal?: AbortSignal;
  /** Is told how far it is, in bytes of RAM, the last time with `done === total`. */
  onProgress?(done: number, total: number): void;
}

/**
 * Throws unless memory can be saved like that.
 *
 * @throws {TypeError} Naming what is not what it should be.
 */
export function checkSaveOptions(directory: unknown, options: unknown): asserts options is SaveOptions {
  checkNewDirectory(directory);
  if (typeof options !== "object" || options === null) throw new TypeError(`Options must be an object, got ${options}`);
  const { base, pages, state, live, signal, onProgress }: { readonly [K in keyof SaveOptions]?: unknown } = options;
  if (base !== undefined && !(base instanceof Snapshot)) throw new TypeError("base must be a Snapshot");
  if (pages !== undefined && !isPageSet(pages)) throw new TypeError("pages must be a PageSet");
  if (live !== undefined) checkBoolean(live, "live");
  checkSignal(signal);
  if (onProgress !== undefined && typeof onProgress !== "function") {
    throw new TypeError("onProgress must be a function");
  }
  if (state === undefined) return;
  if (typeof state !== "object" || state === null) throw new TypeError("state must be an object of names and bytes");
  for (const [name, bytes] of Object.entries(state)) {
    if (!(bytes instanceof Uint8Array)) throw new TypeError(`state.${name} must be a Uint8Array`);
  }
}
