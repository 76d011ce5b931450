import { fileOf } from "../../ffi/files/mappable.ts";
import { normalize, type Span } from "../core/span.ts";
import type { State } from "../core/map/state.ts";
import type { Region } from "../core/map/region.ts";
import { Sight } from "../core/map/sight.ts";
import { sharedFileOf } from "../memory/file_backing.ts";
import { CODE } from "./page_codes.ts";
import type { PageSink } from "./page_sinks.ts";
import { type FileAccount, type FileRows, type MapFile, PageWriter, type Paint } from "./page_writer.ts";

/** Where files come and go in what clients see. */
export interface FilesListener {
  /** A file is shown that was not shown before. */
  shown(file: number, fd: number): void;
  /** It is shown no more, and its descriptor may be closed next. Its number is kept for it until `forget`. */
  gone(file: number): void;
  /** It is shown again. */
  back(file: number): void;
}

/** A file that clients can see, and how many rows refer to it. */
class ShownFile implements FileAccount {
  rows = 1;

  constructor(readonly file: MapFile, readonly number: number) {}
}

/** Writes the memory map down for clients: `publish` costs what has changed. */
export class MapPublisher implements FileRows<ShownFile> {
  readonly #pages: PageWriter<ShownFile>;
  readonly #state: () => State;
  readonly #isClosing: (region: Region) => boolean;
  /** Those that are or were shown. */
  readonly #byFile = new WeakMap<MapFile, ShownFile>();
  /** Those whose numbers others know: all that are shown while somebody listens. */
  readonly #byNumber = new Map<number, ShownFile>();
  #files = 0;
  readonly #sight = new Sight();
  #listener: FilesListener | null = null;

  /** For `length` bytes of guest memory. */
  constructor(length: number, state: () => State, isClosing: (region: Region) => boolean) {
    this.#state = state;
    this.#isClosing = isClosing;
    this.#pages = new PageWriter(length, this);
  }

  /** Tells `listener` of files as they come and go from now on, nobody with `null`. */
  listen(listener: FilesListener | null): void {
    this.#listener = listener;
    this.#byNumber.clear();
    if (listener === null) return;
    for (const shown of this.#pages.accounts()) this.#byNumber.set(shown.number, shown);
  }

  /** The files that are shown, by their numbers. */
  *files(): Iterable<{ number: number; fd: number }> {
    for (const { file, number, rows } of this.#byNumber.values()) if (rows > 0) yield { number, fd: file.fd };
  }

  /**
   * Says that others are about to get the files that are shown.
   *
   * @throws {MemoryLockedError} If memory is locked that could not be, had others its file.
   */
  handOutAll(): void {
    for (const { file, rows } of [...this.#byNumber.values()]) if (rows > 0) file.handOut?.();
  }

  /** Writes everything to `sink`, and from now on what changes. */
  addSink(sink: PageSink): void {
    this.#pages.addSink(sink);
  }

  /** Whether there has never been more at a time than so many words of nodes and numbers of rows have room for. */
  fits(words: number, numbers: number): boolean {
    return this.#pages.fits(words, numbers);
  }

  /** Forgets what has been published, and the room it took: it is to be published anew, while nobody reads. */
  clear(): void {
    this.#pages.clear();
  }

  /** Writes no more to `sink`. */
  removeSink(sink: PageSink): void {
    this.#pages.removeSink(sink);
  }

  /** For the pages: a row more of a file. */
  added(file: MapFile): ShownFile {
    const known = this.#byFile.get(file);
    if (known !== undefined) {
      if (known.rows++ === 0) this.#shown(known);
      return known;
    }
    const shown = new ShownFile(file, ++this.#files);
    this.#byFile.set(file, shown);
    this.#shown(shown);
    return shown;
  }

  /** For the pages: a row less. */
  removed(shown: ShownFile): void {
    if (--shown.rows === 0 && this.#listener !== null) this.#listener.gone(shown.number);
  }

  /** Nobody knows the number of a file any more that is shown no more. */
  forget(number: number): void {
    const shown = this.#byNumber.get(number);
    if (shown !== undefined && shown.rows === 0) this.#byNumber.delete(number);
  }

  #shown(shown: ShownFile): void {
    const { file, number } = shown;
    if (this.#listener === null) return;
    if (this.#byNumber.has(number)) return this.#listener.back(number);
    this.#byNumber.set(number, shown);
    this.#listener.shown(number, file.fd);
  }

  /** Writes down what is mapped in `spans` now. */
  publish(spans: readonly Span[]): void {
    const sight = this.#sight;
    sight.turnTo(this.#state());
    for (const { start, end } of normalize(spans)) {
      for (let at = start; at < end;) {
        sight.move(at);
        const stop = sight.end < end ? sight.end : end;
        this.#pages.paint(at, stop, this.#paintOf(sight));
        at = stop;
      }
    }
  }

  /** What is shown where `sight` is; nothing for a hole, and for what an undo could not put back. */
  #paintOf({ mapping, region, writable, lost }: Sight): Paint | null {
    if (mapping === null || region === null || lost) return null;
    const mappable = sharedFileOf(mapping);
    // Nobody has looked at or locked what was not shown before, and what was shown has been handed out already.
    if (mappable !== null && this.#listener !== null) fileOf(mappable).markHandedOut();
    const access = (writable ? CODE.writable : 0) |
      (mappable !== null && fileOf(mappable).truncatable ? CODE.truncatable : 0) |
      (this.#isClosing(region) ? CODE.closing : 0);
    // Private and copy-on-write memory is where it is mapped, and nowhere else.
    const file = mappable === null ? null : fileOf(mappable);
    return { key: mapping, file, kind: mapping.kind, region, delta: mapping.delta, access };
  }
}
