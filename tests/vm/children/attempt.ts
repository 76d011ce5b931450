/**
 * A request that the kernel makes fail, and everything there is to be seen before and after it.
 *
 * @module
 */

import { type InspectNode, LimitError, MappingError, OsError } from "membacking";
import { mappings, openFds, status, type Vma } from "../../support/proc.ts";
import type { Machine } from "../machine.ts";
import type { Sight, Witness } from "../witness.ts";
import { PAGE } from "../../support/units.ts";

/** An error, as far as it matters. */
export interface Failure {
  readonly name: string;
  readonly message: string;
  /** Of an `OsError`: the system call and the error. */
  readonly os?: string;
  /** Of a `LimitError`. */
  readonly limit?: { readonly limit: string; readonly have: number; readonly want: number };
  /** Of a `MappingError`: how many ranges could not be restored. */
  readonly outOfStep?: number;
  readonly cause?: Failure;
}

/** Everything there is to be seen of guest memory. */
export interface Snapshot {
  /** What the region manager says. */
  readonly model: InspectNode;
  /** The first words of the pages, read through the manager; `null` where nothing is mapped. */
  readonly bytes: readonly (number | null)[];
  /** The same through the guest's eyes. */
  readonly guest: readonly Sight[];
  /** The memory slots. */
  readonly slots: readonly string[];
  /** The kernel's mappings of the reservation. */
  readonly vmas: readonly string[];
  /** How many files are open. */
  readonly fds: number;
  /** How much memory is locked, in KiB. */
  readonly locked: number;
}

/** What came of a request. */
export interface Attempt {
  readonly before: Snapshot;
  readonly error: Failure | null;
  readonly after: Snapshot;
  /** What it failed with once the cause was gone; `null` if it came true. */
  readonly retried: Failure | null;
  /** How things are in the end. */
  readonly finally: Snapshot;
}

/** What to try, and what makes it fail. */
export interface Trial {
  readonly machine: Machine;
  readonly guest: Witness;
  /** The pages to look at, by GPA. */
  readonly pages: readonly number[];
  readonly request: () => void;
  /** Makes the kernel fail, until disposed. */
  readonly cause: () => Disposable;
}

/** Makes the request with its cause of failure, and again without. */
export function attempt(trial: Trial): Attempt {
  const before = snapshot(trial);
  let error: Failure | null;
  {
    using _cause = trial.cause();
    error = failureOf(trial.request);
  }
  const after = snapshot(trial);
  const retried = failureOf(trial.request);
  return { before, error, after, retried, finally: snapshot(trial) };
}

/** What `action` throws, `null` if nothing. */
export function failureOf(action: () => void): Failure | null {
  try {
    action();
    return null;
  } catch (error) {
    return describe(error);
  }
}

function describe(error: unknown): Failure {
  if (!(error instanceof Error)) return { name: typeof error, message: String(error) };
  const { name, message, cause } = error;
  return {
    name,
    message,
    ...(error instanceof OsError && { os: `${error.syscall} ${error.code}` }),
    ...(error instanceof LimitError && { limit: { limit: error.limit, have: error.have, want: error.want } }),
    ...(error instanceof MappingError && { outOfStep: error.outOfStep.length }),
    ...(cause !== undefined && { cause: describe(cause) }),
  };
}

/** Everything there is to be seen. */
export function snapshot({ machine, guest, pages }: Pick<Trial, "machine" | "guest" | "pages">): Snapshot {
  const { memory } = machine.regions;
  const { base, length } = machine.va;
  const word = (gpa: number) => {
    try {
      return memory.readUint32(gpa);
    } catch {
      return null;
    }
  };
  return {
    model: machine.regions.inspect(),
    bytes: pages.map(word),
    guest: guest.look(pages),
    slots: guest.slots,
    vmas: vmasOf(base, length),
    fds: openFds(),
    locked: status("VmLck"),
  };
}

/** The kernel's mappings of a reservation. Those that go on where another ends are one, and need not be. */
function vmasOf(base: number, length: number): string[] {
  const vmas: Vma[] = [];
  for (const vma of mappings(base, base + length)) {
    const last = vmas.at(-1);
    const goesOn = last !== undefined && last.end === vma.start && last.access === vma.access &&
      last.file === vma.file && (vma.file === "" || last.offset + last.end - last.start === vma.offset);
    if (goesOn) vmas[vmas.length - 1] = { ...last, end: vma.end };
    else vmas.push(vma);
  }
  return vmas.map(({ start, end, access, offset, file }) => {
    // What lies around the reservation may be joined with its ends.
    const [from, to] = [Math.max(start, base) - base, Math.min(end, base + length) - base];
    return `0x${from.toString(16)}-0x${to.toString(16)} ${access} ${file} at 0x${offset.toString(16)}`;
  });
}

/** The GPAs of `count` pages from `start` on. */
export function pagesFrom(start: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => start + i * PAGE);
}

/** Tells the parent. */
export function report(value: unknown): void {
  console.log(JSON.stringify(value));
}
