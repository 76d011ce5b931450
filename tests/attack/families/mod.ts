/**
 * All families of attacks.
 *
 * @module
 */

import type { Family } from "../family.ts";
import copies from "./copies.ts";
import faults from "./faults.ts";
import limits from "./limits.ts";
import messages from "./messages.ts";
import owners from "./owners.ts";
import processes from "./processes.ts";
import signals from "./signals.ts";
import stack from "./stack.ts";
import values from "./values.ts";
import vcpus from "./vcpus.ts";
import workers from "./workers.ts";

/** In the order in which they have their turn. */
export const FAMILIES: readonly Family[] = [
  values,
  faults,
  copies,
  stack,
  workers,
  messages,
  owners,
  processes,
  limits,
  signals,
  vcpus,
];
