import { fileOf } from "../../ffi/files/mappable.ts";
import type { HandOutWatcher, OpenFile } from "../../ffi/files/open_file.ts";
import type { Mapping } from "../core/map/region.ts";
import type { Span } from "../core/span.ts";
import { mappableOf } from "../memory/file_backing.ts";
import type { MemoryLocks } from "../memory/memory_locks.ts";

/** Who has to know when a file that is in use gets to others. */
export interface HandOutParties {
  readonly locks: MemoryLocks;
  /** Who keeps clients off guest memory, if there are any. */
  clients(): { holdOff(act: () => void, spans: readonly Span[]): void } | undefined;
  /** Has accessors forget what they know. */
  forget(): void;
}

/**
 * The files of a manager that cannot be accessed in place any more once others have them: huge pages, into which they may
 * punch holes. They are handed out only while no memory of them is locked, and all who look at them are told.
 */
export class HandOuts implements HandOutWatcher {
  readonly #parties: HandOutParties;
  readonly #watched = new Set<OpenFile>();

  constructor(parties: HandOutParties) {
    this.#parties = parties;
  }

  /** Watches the file of a mapping, if it is one of those. */
  watch(mapping: Mapping): void {
    const mappable = mappableOf(mapping);
    if (mappable === null) return;
    const file = fileOf(mappable);
    if (!file.hugetlb || file.truncatable || file.vouched || this.#watched.has(file)) return;
    this.#watched.add(file);
    file.watch(this);
  }

  /** @throws {MemoryLockedError} If memory of the file is locked. */
  handOut(file: OpenFile, proceed: () => void): void {
    const { locks, clients, forget } = this.#parties;
    const act = () => {
      locks.checkFile(file);
      proceed();
      forget();
    };
    const others = clients();
    if (others === undefined) act();
    else others.holdOff(act, locks.spansOf(file));
  }

  /** Watches nothing any more. */
  close(): void {
    for (const file of this.#watched) file.unwatch(this);
  }
}
