import type { Mappable } from "../../ffi/files/mappable.ts";
import type { VaTarget } from "../core/targets.ts";
import type { MemoryLocks } from "../memory/memory_locks.ts";
import type { WrittenPages } from "../memory/written_pages.ts";
import type { Logger, Quiesce } from "../targets/targets.ts";

/** What the map acts through. */
export interface MemoryMapOptions {
  readonly va: VaTarget<Mappable>;
  readonly quiesce: Quiesce | undefined;
  readonly logger: Logger | undefined;
  /** Called before each request: what was known of the memory map is no longer so. */
  readonly invalidate: () => void;
  /** The locks on guest memory, which requests respect. */
  readonly locks: MemoryLocks;
  /** The account of written pages. */
  readonly written: WrittenPages;
}
