import { isThenable } from "../targets/sync.ts";
import type { Logger } from "../targets/targets.ts";

/** A logger that is told nothing. */
export const SILENT: Logger = { debug() {}, info() {}, warn() {}, error() {} };

/** A logger must not change what a request does: what it throws is ignored, and it is called by way of `during`. */
export function guardedLogger(logger: Logger, during: (call: () => void) => void): Logger {
  const guard = (level: "debug" | "info" | "warn" | "error") => (msg: string, ...args: unknown[]) =>
    during(() => {
      try {
        const result: unknown = logger[level](msg, ...args);
        if (isThenable(result)) Promise.resolve(result).catch(() => {});
      } catch {
        // Nobody is left to tell.
      }
    });
  return { debug: guard("debug"), info: guard("info"), warn: guard("warn"), error: guard("error") };
}
