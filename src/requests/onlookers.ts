import type { View } from "../core/map/overlap.ts";
import type { State } from "../core/map/state.ts";
import type { Span } from "../core/span.ts";
import type { Logger } from "../targets/targets.ts";
import { guardedLogger, SILENT } from "./guarded_logger.ts";
import { effortOf, type Reporter, reportText, type RequestReport } from "./request_report.ts";

/** Is told of each request once the next one may be made; `changed` is where the two may differ. Must not throw. */
export type Watcher = (old: View, state: State, changed: readonly Span[]) => void;

/** Those who are told what requests have done: the logger, watchers of the map, and those who want to know of each. */
export class Onlookers {
  /** The logger, guarded: what it throws is ignored, and it cannot make requests. */
  readonly logger: Logger;
  /** Whether states may be asked that have been replaced: those of reports are kept by others. */
  keepsStates = false;
  /** Whether anybody watches the map. */
  areWatching = false;
  /** Whether anybody wants a report. */
  wantReports: boolean;
  readonly #whileBusy: (call: () => void) => void;
  #watchers: readonly { readonly watcher: Watcher }[] = [];
  readonly #reporters = new Set<Reporter>();

  /** `whileBusy` calls what cannot make requests. */
  constructor(logger: Logger | undefined, whileBusy: (call: () => void) => void) {
    this.logger = logger === undefined ? SILENT : guardedLogger(logger, whileBusy);
    this.wantReports = this.isLogged;
    this.#whileBusy = whileBusy;
  }

  /** Whether anybody reads what is logged. */
  get isLogged(): boolean {
    return this.logger !== SILENT;
  }

  /** Tells `watcher` of each request from now on, until the result is disposed. */
  watch(watcher: Watcher): Disposable {
    const entry = { watcher };
    this.#watchers = [...this.#watchers, entry];
    this.areWatching = true;
    return {
      [Symbol.dispose]: () => {
        this.#watchers = this.#watchers.filter((other) => other !== entry);
        this.areWatching = this.#watchers.length > 0;
      },
    };
  }

  /** Tells `reporter` of each request from now on, until the result is disposed. States it is told of can be kept. */
  report(reporter: Reporter): Disposable {
    this.#reporters.add(reporter);
    this.keepsStates = this.wantReports = true;
    return {
      [Symbol.dispose]: () => {
        this.#reporters.delete(reporter);
        this.wantReports = this.#reporters.size > 0 || this.isLogged;
      },
    };
  }

  /** Tells the logger and those who asked for reports. */
  tell(report: RequestReport): void {
    if (this.logger !== SILENT) {
      const { microseconds } = report;
      this.logger.debug(reportText(report), { ...effortOf(report.plan), microseconds: Math.round(microseconds) });
    }
    for (const reporter of this.#reporters) this.#whileBusy(() => reporter(report));
  }

  /** Tells those who watch the map. */
  changed(old: State, state: () => State, changed: readonly Span[]): void {
    const watchers = this.#watchers;
    for (let i = 0; i < watchers.length; i++) watchers[i]!.watcher(old, state(), changed);
  }
}
