import type { Logger } from "./targets.ts";

/** Tells the user's logger of something that failed nothing. What the logger throws is ignored. */
export type Report = (level: "warn" | "error", msg: string, ...args: unknown[]) => void;

/** A report to `logger`, if there is one. */
export function reportTo(logger: Logger | undefined): Report {
  return (level, msg, ...args) => {
    try {
      logger?.[level](msg, ...args);
    } catch {
      // Nobody is left to tell.
    }
  };
}
