import type { Span } from "../core/span.ts";

/** Keeps others off guest memory while it changes. */
export interface MapGate {
  /** Returns once nobody else accesses guest memory; nobody will until `open`. Must not throw. */
  shut(): void;
  /** Lets them go on. What differs from before, if anything does, differs in `changed`. Must not throw. */
  open(changed: readonly Span[]): void;
}
