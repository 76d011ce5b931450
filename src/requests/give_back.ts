import { punchHole } from "../../ffi/files/punch.ts";
import type { Mappable } from "../../ffi/files/mappable.ts";
import { MembackingError } from "../core/errors.ts";
import type { MemoryRange } from "../core/memory_range.ts";
import { type Discard, planDiscard } from "../core/plan/discard.ts";
import type { HostBytes, VaTarget } from "../core/targets.ts";
import { mappableOf } from "../memory/file_backing.ts";
import type { MemoryLocks } from "../memory/memory_locks.ts";
import type { MemoryMap } from "./memory_map.ts";

/** Gives RAM back to the host: now, or once the batch under way has come true, when what fails is logged. */
export function discardRam(map: MemoryMap, locks: MemoryLocks, va: VaTarget<Mappable>, range: MemoryRange): void {
  const act = () => map.discard(range, (discard) => giveBack(discard, va, (gpa) => locks.bytesAt(gpa)));
  if (!map.isInBatch) return act();
  map.check();
  planDiscard(map.current, range.start, range.end);
  map.whenDecided((committed) => {
    if (!committed) return;
    try {
      act();
    } catch (error) {
      // The batch has happened, and whoever made it is told so.
      map.onlookers.logger.error(`RAM at ${range} could not be discarded after a batch`, error);
    }
  });
}

/** Gives pages back to the host. What fails half-way has given back what came before. */
function giveBack(
  { punched, emptied, zeroed }: Discard,
  va: VaTarget<Mappable>,
  bytesAt: (gpa: number) => HostBytes,
): void {
  for (const { start, end, value: { mapping } } of punched) {
    const mappable = mappableOf(mapping);
    if (mappable !== null) punchHole(mappable, start + mapping.delta, end - start);
  }
  for (const { start, end } of emptied) {
    if (va.empty === undefined) throw new MembackingError("This VA target cannot give private memory back");
    va.empty(start, end);
  }
  for (const { start, end } of zeroed) {
    const { buffer, offset } = bytesAt(start);
    new Uint8Array(buffer, offset, end - start).fill(0);
  }
}
