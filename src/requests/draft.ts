import type { Change, OwnRange } from "../core/map/edits.ts";
import type { Mapping, Region } from "../core/map/region.ts";
import type { State } from "../core/map/state.ts";
import type { Span } from "../core/span.ts";
import { closeFile } from "../memory/file_backing.ts";
import type { RequestPart } from "./request_report.ts";

/** Is told whether what it belongs to came true. Must not throw. */
export type Outcome = (committed: boolean) => void;

/** How far a draft had got, to go back to. */
interface Mark {
  readonly state: State;
  readonly changed: number;
  readonly gone: number;
  readonly split: number;
  readonly removed: number;
  readonly added: number;
  readonly waiting: number;
  readonly parts: number;
}

/** What a batch has asked for so far: several changes that are to become one. */
export class Draft implements Change {
  state: State;
  readonly changed: Span[] = [];
  readonly gone: Mapping[] = [];
  readonly split: Mapping[] = [];
  readonly removed: OwnRange[] = [];
  /** The mappings it brought along, with handles of files of their own. */
  readonly added: Mapping[] = [];
  /** The requests, for those who are told of it. */
  readonly parts: RequestPart[] = [];
  /** Who wants to know whether it came true. */
  readonly waiting: Outcome[] = [];

  /** Whether it has been carried out. */
  isDone = false;

  /** A draft that has changed nothing about `state` yet. */
  constructor(state: State) {
    this.state = state;
  }

  /** Adds a request, and what it changes about `state`. */
  add(name: string, region: Region | null, change: Change, added: Mapping | null): void {
    this.parts.push({ name, region });
    if (added !== null) this.added.push(added);
    this.state = change.state;
    for (const span of change.changed) this.changed.push(span);
    for (const mapping of change.gone) this.gone.push(mapping);
    for (const mapping of change.split) this.split.push(mapping);
    for (const range of change.removed) this.removed.push(range);
  }

  /** Where it is now. */
  mark(): Mark {
    const { state, changed, gone, split, removed, added, waiting, parts } = this;
    return {
      state,
      changed: changed.length,
      gone: gone.length,
      split: split.length,
      removed: removed.length,
      added: added.length,
      waiting: waiting.length,
      parts: parts.length,
    };
  }

  /** Forgets what has been added since, and closes what came along with it. */
  goBackTo({ state, changed, gone, split, removed, added, waiting, parts }: Mark): void {
    this.state = state;
    this.parts.length = parts;
    this.changed.length = changed;
    this.gone.length = gone;
    this.split.length = split;
    this.removed.length = removed;
    this.#takeBack(added, waiting);
  }

  /** Closes what came along, and tells those who wait that it does not come true; of either all but the first so many. */
  #takeBack(added: number, waiting: number): void {
    // What has been seen to goes from its list last: where an exception ends this, it can be gone on with.
    for (; this.added.length > added; this.added.pop()) closeFile(this.added.at(-1)!);
    // What failed is taken back from the last to the first.
    for (; this.waiting.length > waiting; this.waiting.pop()) this.waiting.at(-1)!(false);
  }

  /** Tells all who wait what became of it; where an exception ended that, the rest. */
  decide(): void {
    if (this.isDone) this.#comeTrue();
    else this.#takeBack(0, 0);
  }

  /** None is told twice: each may give something up. */
  #comeTrue(): void {
    while (this.waiting.length > 0) this.waiting.shift()!(true);
  }
}
