import { Mappable } from "../../ffi/files/mappable.ts";
import { DisposedError, LimitError } from "../core/errors.ts";
import { ProtocolError } from "./protocol_error.ts";
import type { FileReference } from "./protocol.ts";

/** How many files a client in another process may have shown or been lent at a time: each takes a descriptor of the owner. */
const MOST_FILES = 1024;

/** The files that a client has shown to the owner, and those the owner has lent to it, by the client's numbers. */
export class ClientFiles implements Disposable {
  readonly #files = new Map<number, Mappable>();
  /** What was wrong with a file that another process sent, for the request that names it. */
  readonly #refused = new Map<number, unknown>();
  /** Whether it is a client in this process. */
  readonly isSameProcess: boolean;
  #lent = 0;

  /** Of a client in this process or in another one, whose numbers of descriptors mean nothing here. */
  constructor(isSameProcess: boolean) {
    this.isSameProcess = isSameProcess;
  }

  /**
   * Keeps a file that has arrived: a duplicate of `fd`, `undefined` where there was none.
   *
   * @throws {ProtocolError} If there are too many.
   */
  add(key: number, fd: number | undefined): void {
    this.forget(key);
    if (this.#files.size + this.#refused.size >= MOST_FILES && !this.isSameProcess) {
      throw new ProtocolError(`A client shows ${MOST_FILES} files at a time at most`);
    }
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
    if (key < 0 || !this.isSameProcess) throw new DisposedError("The file that was lent");
    const own = Mappable.fromFd(fd);
    this.#files.set(key, own);
    return own;
  }

  /**
   * Makes a file with `make` that the owner lends, keeps it, and says by which number it is known.
   *
   * @throws {LimitError} If too many are lent.
   */
  lend(make: () => Mappable): { readonly key: number; readonly file: Mappable } {
    if (this.#files.size >= MOST_FILES && !this.isSameProcess) {
      throw new LimitError("files of one client", MOST_FILES, this.#files.size + 1, "dispose those of no use any more");
    }
    const file = make();
    const key = -(++this.#lent);
    this.#files.set(key, file);
    return { key, file };
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
