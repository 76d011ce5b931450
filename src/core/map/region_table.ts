import type { Region, RegionState } from "./region.ts";

/**
 * What can change about each region: a persistent map from regions to their states.
 *
 * Versions follow each other in one line, and it is the newest that is asked nearly always. So that one keeps its
 * states in the regions themselves, one field away, and every other version remembers only what it has otherwise than
 * the next one:
 *
 * ```
 *   v1 --- a was A1 ---> v2 --- b was B1 ---> v3        a.latest = A2, b.latest = B2
 * ```
 *
 * Going back to an older version is allowed, and costs what it differs in. The idea is Baker's ("Shallow binding makes
 * functional arrays fast", 1991). A region belongs to the versions of one table.
 */
export class RegionTable {
  static readonly #RETIRED = new RegionTable();
  #newer: RegionTable | null = null;
  /** What differs in the newer version: one region as a rule, the rest in `#others`. */
  #region: Region | null = null;
  #state: RegionState | undefined = undefined;
  #others: Map<Region, RegionState | undefined> | null = null;

  /** The state of `region`, `undefined` where it does not exist. */
  get(region: Region): RegionState | undefined {
    return this.#newer === null ? region.latest : this.#olderState(region, this.#newer);
  }

  /** The next version, in which `region` has another state, or with `undefined` is gone. */
  with(region: Region, state: RegionState | undefined): RegionTable {
    if (this.#newer !== null) this.#becomeNewest(this.#newer);
    const next = new RegionTable();
    this.#newer = next;
    this.#region = region;
    this.#state = region.latest;
    region.latest = state;
    return next;
  }

  /**
   * Says that nobody asks this version any more. Versions that still knew their successors would keep all of them
   * alive from one major garbage collection to the next.
   */
  retire(): void {
    this.#newer = RegionTable.#RETIRED;
    this.#region = this.#others = null;
    this.#state = undefined;
  }

  #olderState(region: Region, newer: RegionTable): RegionState | undefined {
    if (newer.#newer !== null || newer === RegionTable.#RETIRED) this.#skipTo(newer);
    if (region === this.#region) return this.#state;
    return this.#others?.has(region) ? this.#others.get(region) : region.latest;
  }

  /** Takes over what the versions between this one and the newest remember, so that the way is short from now on. */
  #skipTo(version: RegionTable): RegionTable {
    for (; version.#newer !== null; version = version.#newer) {
      if (version.#region !== null) this.#remember(version.#region, version.#state);
      for (const [region, state] of version.#others ?? []) this.#remember(region, state);
    }
    if (version === RegionTable.#RETIRED) throw new Error("This version of the regions has been retired");
    this.#newer = version;
    return version;
  }

  #becomeNewest(newer: RegionTable): void {
    const newest = this.#skipTo(newer);
    const differences = new Map(this.#others);
    if (this.#region !== null) differences.set(this.#region, this.#state);
    this.#newer = this.#region = this.#others = null;
    newest.#newer = this;
    for (const [region, state] of differences) {
      newest.#remember(region, region.latest);
      region.latest = state;
    }
  }

  #remember(region: Region, state: RegionState | undefined): void {
    if (this.#region === null) {
      this.#region = region;
      this.#state = state;
    } else if (region !== this.#region) {
      this.#others ??= new Map();
      if (!this.#others.has(region)) this.#others.set(region, state);
    }
  }
}
