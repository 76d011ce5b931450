import { LeftBehind } from "../core/left_behind.ts";
import type { Span } from "../core/span.ts";
import { DirtyLog } from "./dirty_log.ts";
import { VhostUserError } from "./errors.ts";
import type { BackendLink } from "./link.ts";

/** What a back end has written in the memory of its table: by its log, where it has one, else all of it. */
export class WrittenMemory {
  /** Whether somebody wants to know. */
  isAsked = false;
  readonly #link: BackendLink;
  /**
   * Memory that may have been written without a mark; and the marks of memory that is in the table no longer, and of a log
   * that was given up for a longer one. To be told once.
   */
  readonly #left = new LeftBehind();

  constructor(link: BackendLink) {
    this.#link = link;
  }

  /** Tells `mark` what was written since the last time. The first call starts the log. Blocks for that. */
  take(table: readonly Span[], mark: (start: number, end: number) => void): void {
    const link = this.#link;
    const { state } = link.connection;
    this.#left.handOut(mark);
    if (state === "gone") return;
    if (state === "open" && link.log !== null) {
      // Whoever is told may have the log given up, or lengthened.
      for (const span of table) link.log?.take(span, mark);
      return;
    }
    for (const { start, end } of table) mark(start, end);
    if (state !== "open" || !link.canLog || !link.ready) return;
    const log = new DirtyLog(2 * Math.max(2 ** 32, endOf(table)));
    try {
      link.startLog(log);
    } catch (error) {
      log[Symbol.dispose]();
      // Without a log, all is reported each time. A back end that fell silent has been cut off, which whoever asks it
      // for something next is told.
      if (!(error instanceof VhostUserError)) throw error;
    }
  }

  /** Has the back end stop logging. Blocks. */
  stopLogging(): void {
    const { log } = this.#link;
    if (log === null) return;
    this.#link.stopLog();
    log[Symbol.dispose]();
  }

  /** Whether the log, if there is one, is too short for a table: it has a bit for each page. */
  isBeyondLog(table: readonly Span[]): boolean {
    const { log } = this.#link;
    return log !== null && endOf(table) > log.end;
  }

  /** Makes the log, which there is, long enough for the table to come. Blocks. */
  lengthenLog(table: readonly Span[], next: readonly Span[]): void {
    const { log } = this.#link;
    const longer = new DirtyLog(2 * endOf(next));
    try {
      this.#link.startLog(longer);
    } catch (error) {
      longer[Symbol.dispose]();
      throw error;
    }
    this.#carry(log, table);
    log?.[Symbol.dispose]();
  }

  /** Keeps the marks of memory that has gone from the table. */
  carry(spans: readonly Span[]): void {
    this.#carry(this.#link.log, spans);
  }

  #carry(log: DirtyLog | null, spans: readonly Span[]): void {
    for (const span of spans) log?.take(span, (start, end) => this.#left.marks.add(start, end));
  }

  /** The back end is gone, and what it wrote last may have no marks. */
  lose(table: readonly Span[]): void {
    if (this.isAsked) { for (const { start, end } of table) this.#left.marks.add(start, end); }
  }
}

function endOf(spans: readonly Span[]): number {
  return spans.reduce((most, { end }) => Math.max(most, end), 0);
}
