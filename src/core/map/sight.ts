import { Place, type RangeMap } from "../range_map.ts";
import type { MapParams, Mapping, Piece, Region } from "./region.ts";
import { type Damage, NO_STATE, type State, UNDAMAGED } from "./state.ts";

/**
 * A cursor over what one state shows: at each address the region, the mapping and the access, and how far they reach.
 * It only moves upwards.
 *
 * ```
 *   region     |--------- a ---------|---- b ----|
 *   mapping      |-- m --|      |-- n --|-- n --|
 *   stops      ^ ^       ^      ^    ^  ^        ^
 * ```
 */
export class Sight {
  /** Who shows here, `null` for nobody. */
  region: Region | null = null;
  /** How it is mapped. */
  params: MapParams | null = null;
  /** Region writable and mapping writable. */
  writable = false;
  /** Whether an undo could not put host memory back here: what is there is not known. */
  lost = false;
  /** Memory in no file that is there for all that, although it should be parked. */
  stranded: Mapping | null = null;
  /** Whether the host addresses are gone for good. */
  poisoned = false;
  /** Where the next stop is: up to there everything above holds. */
  end = -Infinity;
  #state: State;
  readonly #shown = new Place<Region>();
  readonly #backed = new Place<Mapping>();
  #lost: Place<Mapping | true> | null = null;
  #poisoned: Place<true> | null = null;
  #mappings: RangeMap<Mapping> | null = null;

  /** A cursor over `state`, nowhere yet; over nothing for one that is to be kept. */
  constructor(state: State = NO_STATE) {
    this.#state = state;
    this.turnTo(state);
  }

  /**
   * Begins anew over `state`. A cursor that is kept for the next walk is half of what a short walk would make, and who shows
   * there is most often what the last walk found.
   */
  turnTo(state: State): void {
    if (state.visible !== this.#state.visible) this.#shown.forget();
    this.#state = state;
    this.end = this.#backed.end = -Infinity;
    if (state.damage !== UNDAMAGED || this.#lost !== null) this.#turnToDamage(state.damage);
  }

  #turnToDamage(damage: Damage): void {
    this.#lost = damage === UNDAMAGED ? null : new Place();
    this.#poisoned = damage === UNDAMAGED ? null : new Place();
    this.stranded = null;
    this.lost = this.poisoned = false;
  }

  /** Moves to `gpa`, which is not below where it was. */
  move(gpa: number): void {
    if (gpa < this.end) return;
    const isShown = this.#shown.has(gpa);
    if (!isShown) this.#state.visible.seek(gpa, this.#shown);
    if (!isShown || this.end === -Infinity) this.#enter(gpa);
    this.#find(gpa);
  }

  /** The same where `other`, which is at `gpa`, may have found who shows there: most requests do not change that. */
  moveTo(gpa: number, other: Sight): void {
    if (gpa < this.end) return;
    if (!this.#shown.has(gpa) && other.#state.visible === this.#state.visible) {
      this.#shown.copy(other.#shown);
      this.#enter(gpa);
      this.#find(gpa);
    } else {
      this.move(gpa);
    }
  }

  /** Finds what backs `gpa`, in the region that shows there. */
  #find(gpa: number): void {
    const shown = this.#shown;
    const backed = this.#backed;
    if (gpa >= backed.end) {
      if (this.#mappings === null) {
        backed.value = null;
        backed.end = Infinity;
      } else {
        this.#mappings.seek(gpa, backed);
      }
      this.writable = backed.value !== null && backed.value.writable && this.params !== null && this.params.writable;
    }
    this.end = backed.end < shown.end ? backed.end : shown.end;
    if (this.#lost !== null && this.#poisoned !== null) this.#inspect(gpa, this.#lost, this.#poisoned);
  }

  /** What it looks at. */
  get state(): State {
    return this.#state;
  }

  /** What backs it here, `null` for a hole. */
  get mapping(): Mapping | null {
    return this.#backed.value;
  }

  /** Where the fragment of the region begins that is here. */
  get fragmentStart(): number {
    return this.#shown.start;
  }

  /** Where that part of the mapping begins that the fragment shows here. */
  get mappingStart(): number {
    return Math.max(this.#shown.start, this.#backed.start);
  }

  /** What is here as a value of its own, `null` for a hole. */
  piece(): Piece | null {
    const { mapping, region, params, writable } = this;
    return mapping === null || region === null || params === null ? null : { mapping, region, params, writable };
  }

  /** Turns to the region that shows there. */
  #enter(gpa: number): void {
    const { regions } = this.#state;
    const region = this.#shown.value;
    const owner = region === null ? undefined : regions.get(region);
    this.region = region;
    this.params = owner === undefined ? null : owner.params;
    this.#mappings = owner === undefined ? null : owner.mappings;
    this.#backed.end = gpa;
  }

  #inspect(gpa: number, lost: Place<Mapping | true>, poisoned: Place<true>): void {
    const { damage } = this.#state;
    if (gpa >= lost.end) damage.lost.seek(gpa, lost);
    if (gpa >= poisoned.end) damage.poisoned.seek(gpa, poisoned);
    this.lost = lost.value !== null;
    this.stranded = lost.value === true ? null : lost.value;
    this.poisoned = poisoned.value !== null;
    this.end = Math.min(this.end, lost.end, poisoned.end);
  }
}
