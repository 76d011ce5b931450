import { Mappable } from "../../ffi/files/mappable.ts";
import { DisposedError } from "../core/errors.ts";
import type { FileReference } from "./protocol.ts";

/** The files that a client has shown to the owner, and those the owner has lent to it, by the client's numbers. */
export class ClientFiles implements Disposable {
  readonly #files = new Map<number, Mappable>();
  /** What was wrong with a file that another process sent, for the request that names it. */
  readonly #refused = new Map<number, unknown>();
  readonly #isSameProcess: boolean;
  #lent = 0;

  /** Of a client in this process or in another one, whose numbers of descriptors mean nothing here. */
  constructor(isSameProcess: boolean) {
    this.#isSameProcess = isSameProcess;
  }

  /** Keeps a file that has arrived: a duplicate of `fd`, `undefined` where there was none. */
  add(key: number, fd: number | undefined): void {
    this.forget(key);
    try {
      if (fd === undefined) throw new DisposedError("The file that was sent", "has not arrived");
      this.#files.set(key, Mappable.fromFd(fd));
    } catch (error) {
      this.#refused.set(key, error);
    }
  }

  /**
   * The file that a request names.
   *
   * @throws {OsError} If it is of a kind that cannot back guest memory.
   */
  get({ key, fd }: FileReference): Mappable {
    const known = this.#files.get(key);
    if (known !== undefined) return known;
    if (this.#refused.has(key)) throw this.#refused.get(key);
    if (key < 0 || !this.#isSameProcess) throw new DisposedError("The file that was lent");
    const own = Mappable.fromFd(fd);
    this.#files.set(key, own);
    return own;
  }

  /** Keeps a file that the owner lends, and returns the number it is known by. */
  lend(file: Mappable): number {
    const key = -(++this.#lent);
    this.#files.set(key, file);
    return key;
  }

  /** The client does not use the file any more. */
  forget(key: number): void {
    this.#files.get(key)?.[Symbol.dispose]();
    this.#files.delete(key);
    this.#refused.delete(key);
  }

  /** Closes all of them. */
  [Symbol.dispose](): void {
    for (const file of this.#files.values()) file[Symbol.dispose]();
    this.#files.clear();
    this.#refused.clear();
  }
}
