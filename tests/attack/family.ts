/**
 * What an attack is: a family of things that go wrong, tried at random in a process of their own.
 *
 * To add one, write a file in `families/` that exports a `Family` as its default, and name it in `families/mod.ts`.
 *
 * @module
 */

import { MembackingError } from "membacking";
import type { Random } from "./random.ts";

/** One family of attacks. */
export interface Family {
  /** Its name, for the command line. */
  readonly name: string;
  /** Whether it needs /dev/kvm. */
  readonly needsKvm?: boolean;
  /** How long a child may take before it counts as hanging, in milliseconds. */
  readonly timeout?: number;
  /** Attacks once. What it makes it disposes, and what should hold afterwards it says by `notes.claim`. */
  attack(random: Random, notes: Notes): void | Promise<void>;
}

/** What a child has seen. */
export interface Report {
  /** How many calls or disturbances there were. */
  readonly attempts: number;
  /** How often each class of error came, `none` among them. */
  readonly outcomes: Readonly<Record<string, number>>;
  /** What was promised and did not hold. */
  readonly broken: readonly string[];
}

/** Keeps count. With `ATTACK_TRACE` in the environment, says what it tries before it does. */
export class Notes {
  #attempts = 0;
  #outcomes: Record<string, number> = {};
  #broken: string[] = [];

  /** Calls `attempt`, and notes what came of it. Returns its result, or `undefined` where it threw. */
  try<T>(what: string, attempt: () => T): T | undefined {
    this.#attempts++;
    if (Deno.env.has("ATTACK_TRACE")) console.error(what);
    try {
      const result = attempt();
      if (result instanceof Promise) result.catch((error) => this.error(what, error));
      this.#count("none");
      return result;
    } catch (error) {
      this.error(what, error);
      return undefined;
    }
  }

  /** The same for what ends later. */
  async tryLater<T>(what: string, attempt: () => T | Promise<T>): Promise<T | undefined> {
    this.#attempts++;
    try {
      const result = await attempt();
      this.#count("none");
      return result;
    } catch (error) {
      this.error(what, error);
      return undefined;
    }
  }

  /** Notes an error: typed ones are what is promised, anything else is not. */
  error(what: string, error: unknown): void {
    this.#count(error instanceof Error ? error.name : typeof error);
    if (!isClean(error)) this.broken(`${what} threw ${describe(error)}`);
  }

  /** Says that something should hold. */
  claim(holds: boolean, what: string): void {
    if (!holds) this.broken(what);
  }

  /** Says that something does not hold. */
  broken(what: string): void {
    if (this.#broken.length < 20) this.#broken.push(what);
  }

  /** What there was. */
  get report(): Report {
    return { attempts: this.#attempts, outcomes: this.#outcomes, broken: this.#broken };
  }

  #count(outcome: string): void {
    this.#outcomes[outcome] = (this.#outcomes[outcome] ?? 0) + 1;
  }
}

/** What attacks throw themselves, from callbacks, getters and traps. */
export class Planted extends Error {
  override name = "Planted";
}

/** What the engine says when a number got further than it should have. */
const ACCIDENT = /Cannot (mix|convert .* to a BigInt)|Maximum call|Invalid (typed )?array (buffer )?length/;

/** Whether an error is of the kinds that are promised. */
function isClean(error: unknown): boolean {
  for (let e = error, depth = 0; depth < 20; depth++) {
    if (e instanceof Planted || e instanceof MembackingError) return true;
    if (e instanceof AggregateError || e instanceof SuppressedError) return true;
    if (e instanceof SyntaxError || e instanceof DOMException || e instanceof Deno.errors.NotFound) return true; // aborts, missing files
    if ((e instanceof TypeError || e instanceof RangeError) && !ACCIDENT.test(e.message)) return true;
    if (!(e instanceof Error) || e.cause === undefined) return false;
    e = e.cause;
  }
  return false;
}

function describe(error: unknown): string {
  if (!(error instanceof Error)) return `a ${typeof error}`;
  const where = error.stack?.split("\n").slice(1, 4).map((line) =>
    line.trim().replace(/file:\S*\/(?=(src|ffi)\/)/, "")
  );
  return `${error.name}: ${error.message} ${where?.join(" < ")}`;
}
