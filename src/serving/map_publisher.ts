import { fileOf } from "../../ffi/files/mappable.ts";
import type { Entry } from "../core/range_map.ts";
import { normalize, type Span } from "../core/span.ts";
import type { State } from "../core/map/state.ts";
import type { Piece, Region } from "../core/map/region.ts";
import { piecesIn } from "../core/map/view.ts";
import { sharedFileOf } from "../memory/file_backing.ts";
import { CODE } from "./page_codes.ts";
import type { PageSink } from "./page_sinks.ts";
import { type FileRows, type MapFile, PageWriter, type Paint } from "./page_writer.ts";

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
interface ShownFile {
  readonly file: MapFile;
  readonly number: number;
  rows: number;
}

/** Writes the memory map down for clients: `publish` costs what has changed. */
export class MapPublisher implements FileRows {
  readonly #pages: PageWriter;
  readonly #state: () => State;
  readonly #isClosing: (region: Region) => boolean;
  readonly #byFile = new Map<MapFile, ShownFile>();
  readonly #byNumber = new Map<number, ShownFile>();
  #files = 0;
  /** Is told of files as they come and go. */
  listener: FilesListener | null = null;

  /** For `length` bytes of guest memory. */
  constructor(length: number, state: () => State, isClosing: (region: Region) => boolean) {
    this.#state = state;
    this.#isClosing = isClosing;
    this.#pages = new PageWriter(length, this);
  }

  /** The files that are shown, by their numbers. */
  *files(): Iterable<{ number: number; fd: number }> {
    for (const { file, number, rows } of this.#byNumber.values()) if (rows > 0) yield { number, fd: file.fd };
  }

  /** Writes everything to `sink`, and from now on what changes. */
  addSink(sink: PageSink): void {
    this.#pages.addSink(sink);
  }

  /** Writes no more to `sink`. */
  removeSink(sink: PageSink): void {
    this.#pages.removeSink(sink);
  }

  /** For the pages: a row more of a file. */
  added(file: MapFile): number {
    const known = this.#byFile.get(file);
    if (known !== undefined) {
      if (known.rows++ === 0) this.listener?.back(known.number);
      return known.number;
    }
    const shown = { file, number: ++this.#files, rows: 1 };
    this.#byFile.set(file, shown);
    this.#byNumber.set(shown.number, shown);
    this.listener?.shown(shown.number, file.fd);
    return shown.number;
  }

  /** For the pages: a row less. */
  removed(number: number): void {
    const shown = this.#byNumber.get(number);
    if (shown === undefined || --shown.rows > 0) return;
    if (this.listener === null) this.forget(number);
    else this.listener.gone(number);
  }

  /** Gives the number of a file up that is shown no more. */
  forget(number: number): void {
    const shown = this.#byNumber.get(number);
    if (shown === undefined || shown.rows > 0) return;
    this.#byNumber.delete(number);
    this.#byFile.delete(shown.file);
  }

  /** Writes down what is mapped in `spans` now. */
  publish(spans: readonly Span[]): void {
    const state = this.#state();
    for (const { start, end } of normalize(spans)) {
      let at = start;
      for (const piece of piecesIn(state, start, end)) {
        if (at < piece.start) this.#pages.paint(at, piece.start, null);
        this.#pages.paint(piece.start, piece.end, this.#paintOf(piece));
        at = piece.end;
      }
      if (at < end) this.#pages.paint(at, end, null);
    }
  }

  #paintOf({ value: { mapping, region, writable } }: Entry<Piece>): Paint {
    const mappable = sharedFileOf(mapping);
    const access = (writable ? CODE.writable : 0) |
      (mappable !== null && fileOf(mappable).truncatable ? CODE.truncatable : 0) |
      (this.#isClosing(region) ? CODE.closing : 0);
    // Private and copy-on-write memory is where it is mapped, and nowhere else.
    if (mappable === null) return { key: null, file: null, delta: 0, access };
    return { key: mapping, file: fileOf(mappable), delta: mapping.delta, access };
  }
}
