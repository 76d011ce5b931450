import { fileOf } from "../../ffi/files/mappable.ts";
import { MappingError, MembackingError } from "../core/errors.ts";
import { hex } from "../core/hex.ts";
import { MemoryRange, PAGE_SIZE } from "../core/memory_range.ts";
import { FileBacking } from "../memory/file_backing.ts";
import type { RegionInternals } from "../regions/region_internals.ts";
import { internalsOf, type RegionManager } from "../regions/region_manager.ts";
import type { RamBlock } from "./ram.ts";

/**
 * Throws unless all RAM can become copy-on-write: its files must be this manager's alone, by fact, since whoever else has
 * one could change what is to stay as it is.
 *
 * @throws {MappingError} Naming the RAM, what is in the way, and what can be done about it.
 * @throws {MembackingError} If there is no host memory behind it.
 */
export function checkFreezable(internals: RegionInternals, blocks: readonly RamBlock[], isPinned: boolean): void {
  checkMemory(internals);
  if (blocks.length === 0) throw new MappingError("There is no RAM to freeze", MemoryRange.EMPTY);
  for (const { backing: { name, backing }, pieces } of blocks) {
    const range = pieces[0]?.region.range ?? MemoryRange.EMPTY;
    const refuse = (why: string): never => {
      throw new MappingError(`RAM "${name}" cannot be frozen: ${why}`, range);
    };
    if (internals.state().dmaTargets.some(({ pins }) => pins)) {
      refuse("a DMA target pins it, and would go on with the pages that the file has: detach it first");
    }
    if (isPinned) refuse("it is pinned, and copies of pinned pages would have to be made beforehand");
    if (backing === "private") refuse('it is anonymous memory, use the backing "shared"');
    const handles = new Set<object>();
    for (const { region } of pieces) {
      for (const { value: mapping } of internals.mappings(region)) {
        if (mapping.kind !== "shared" || !(mapping.backing instanceof FileBacking)) continue;
        const { mappable } = mapping.backing;
        const file = fileOf(mappable);
        if (file.pageSize > PAGE_SIZE) refuse(`it has huge pages of ${hex(file.pageSize)}`);
        if (file.handedOut) {
          refuse(`${file.label} came from outside, or its descriptor was asked for, so others may have it`);
        }
        handles.add(mapping.backing);
      }
    }
    for (const handle of handles) {
      const { file } = handle as FileBacking;
      const known = [...handles].filter((other) => (other as FileBacking).file === file).length;
      if (file.references > known) refuse(`there are other handles of ${file.label}, dispose them first`);
    }
  }
}

/**
 * Throws where host memory is only recorded: there is nothing to freeze, to save, or to clone into.
 *
 * @throws {MembackingError} Saying so.
 */
export function checkReal(regions: RegionManager): void {
  checkMemory(internalsOf(regions));
}

function checkMemory({ isReal }: RegionInternals): void {
  if (isReal) return;
  throw new MembackingError(
    "Host memory that is only recorded has no pages: it can be neither frozen nor saved, cloned into nor restored into",
  );
}
