import type { Mapping } from "../core/map/region.ts";
import { closeFile } from "../memory/file_backing.ts";

/**
 * What a request on copies has opened and not handed over yet. Where an exception comes from where none is expected, such
 * as the end of the stack, nothing can be closed there and then: the next request finds it here.
 */
export class Leftovers {
  #handles: Disposable[] = [];
  #mappings: Mapping[] = [];

  /** Whether a request has left something behind. */
  get isEmpty(): boolean {
    return this.#handles.length === 0 && this.#mappings.length === 0;
  }

  /** Notes a handle that goes when the request has ended, however it does. */
  handle(handle: Disposable): void {
    this.#handles.push(handle);
  }

  /** Notes a mapping, whose file is the map's to close once it has it. */
  mapping(mapping: Mapping): void {
    this.#mappings.push(mapping);
  }

  /** Closes all there is but what the map has after all, as `isKept` says. */
  close(isKept: (mapping: Mapping) => boolean): void {
    for (const mapping of this.#mappings) if (!isKept(mapping)) closeFile(mapping);
    for (const handle of this.#handles) handle[Symbol.dispose]();
    this.#mappings = [];
    this.#handles = [];
  }
}
