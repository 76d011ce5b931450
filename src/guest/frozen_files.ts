import { fileOf, type Mappable } from "../../ffi/files/mappable.ts";

/**
 * Files that hold the memory of one moment, and may not change as long as somebody shows them copy-on-write: a guest that
 * was frozen, templates, clones. Counted, since they may go in any order.
 */
export class FrozenFiles {
  /** One per backing, in the order of the RAM. */
  readonly files: readonly Mappable[];
  readonly #handles: DisposableStack;
  #thaws = new DisposableStack();
  #holders = 0;

  /** Keeps `files` as they are, by handles of its own, until the last holder is gone. */
  constructor(files: readonly Mappable[]) {
    using handles = new DisposableStack();
    this.files = files.map((file) => handles.use(file.clone()));
    this.#handles = handles.move();
    this.freeze();
  }

  /** Lets the files change. */
  thaw(): void {
    this.#thaws.dispose();
  }

  /** Keeps them as they are again. */
  freeze(): void {
    this.#thaws = new DisposableStack();
    for (const file of this.files) this.#thaws.use(fileOf(file).freeze());
  }

  /** How many hold it. */
  get holders(): number {
    return this.#holders;
  }

  /** Counts one more holder, until the result is disposed. */
  hold(): Disposable {
    this.#holders++;
    let held = true;
    return {
      [Symbol.dispose]: () => {
        if (!held) return;
        held = false;
        if (--this.#holders > 0) return;
        this.thaw();
        this.#handles.dispose();
      },
    };
  }
}
