import { punchHole } from "../../ffi/files/punch.ts";
import type { Mappable } from "../../ffi/files/mappable.ts";
import { MembackingError } from "../core/errors.ts";
import type { Discard } from "../core/plan/discard.ts";
import type { HostBytes, VaTarget } from "../core/targets.ts";
import { mappableOf } from "../memory/file_backing.ts";

/** Gives pages back to the host. What fails half-way has given back what came before. */
export function giveBack(
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
