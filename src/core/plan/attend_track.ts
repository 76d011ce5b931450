/**
 * What goes with memory wherever it is replaced, undo included: pinned pages, and pages that are brought in early.
 * MAP_FIXED drops page locks and brings no page in.
 *
 * @module
 */

import { MappingError } from "../errors.ts";
import { MemoryRange } from "../memory_range.ts";
import type { Sight } from "../map/sight.ts";
import type { Book, PartitionState } from "../map/state.ts";
import { gaps, parted, type Span } from "../span.ts";
import { isReplaced } from "./host_track.ts";
import type { AttendStep } from "./steps.ts";

/** Memory that shows, as one part of the view. */
interface Part {
  readonly start: number;
  end: number;
  readonly part: number;
  /** Whether a part of it was not there before. */
  isNew: boolean;
  readonly copyOnWrite: boolean;
}

/** The track of one partition's pins and prefetches. */
export class AttendTrack {
  readonly #partition: PartitionState;
  readonly #spans: readonly Span[];
  readonly #pins: boolean;
  readonly #isNew: boolean;
  /** Memory that is another one, or is to be brought in no longer. */
  readonly #replaced: Part[] = [];
  readonly #unfetched: Part[] = [];
  /** Memory to pin, and to bring in. */
  readonly #pinned: Part[] = [];
  readonly #fetched: Part[] = [];

  /** A track for a partition; `isNew` if it is attached by this request. */
  constructor(partition: PartitionState, spans: readonly Span[], isNew: boolean) {
    this.#partition = partition;
    this.#spans = spans;
    this.#pins = partition.pin && partition.target.pinRange !== undefined;
    this.#isNew = isNew;
  }

  /** Shows it what changes, where that concerns it. */
  segment(start: number, end: number, before: Sight, after: Sight): void {
    const fetchedBefore = before.params !== null && before.params.prefetch;
    const fetched = after.params !== null && after.params.prefetch;
    if (!this.#pins && !fetched && !fetchedBefore) return;
    const replaced = !this.#isNew && isReplaced(before, after);
    if (this.#pins) {
      if (after.mapping?.kind === "copy-on-write") {
        throw new MappingError(
          "Copy-on-write memory cannot be pinned, since all of its file would be copied",
          new MemoryRange(start, end),
        );
      }
      if (replaced) push(this.#replaced, start, end, 0, true, false);
      if (after.mapping !== null && !after.poisoned) {
        push(this.#pinned, start, end, after.mappingStart, replaced, false);
      }
    }
    if (this.#partition.target.prefetchRange === undefined) return;
    if (replaced && fetchedBefore && before.mapping !== null) {
      const isCopy = before.mapping.kind === "copy-on-write";
      push(this.#unfetched, start, end, before.mappingStart, true, isCopy);
    }
    if (fetched && after.mapping !== null) {
      const isNew = this.#isNew || replaced || !fetchedBefore || before.mapping === null;
      push(this.#fetched, start, end, after.mappingStart, isNew, after.mapping.kind === "copy-on-write");
    }
  }

  /** The steps to be done before memory changes and after it has, and what is pinned then. `added` are the new slots. */
  complete(
    added: readonly Span[],
  ): { leaving: readonly AttendStep[]; arriving: readonly AttendStep[]; pins: Book<true> } {
    const leaving: AttendStep[] = [];
    const arriving: AttendStep[] = [];
    const { pins } = this.#partition;
    const { inside, outside } = parted(pins.uncertain, this.#spans);
    let { held } = pins;
    if (this.#pins) {
      // To end what may be pinned ends what is pinned in it for certain, which a failure is to bring back.
      for (const { start, end } of [...inside, ...this.#replaced]) {
        for (const pin of held.overlapping(start, end)) {
          leaving.push(this.#step("pin", Math.max(pin.start, start), Math.min(pin.end, end), true, null));
        }
        held = held.delete(start, end);
      }
      for (const { start, end } of inside) leaving.push(this.#step("pin", start, end, null, null, true));
      for (const { start, end } of this.#pinned) {
        const open = gaps(start, end, held.overlapping(start, end));
        for (const gap of open) arriving.push(this.#step("pin", gap.start, gap.end, null, true));
        for (const gap of open) held = held.set(gap.start, gap.end, true);
      }
    }
    for (const { start, end, copyOnWrite } of this.#unfetched) {
      leaving.push(this.#step("prefetch", start, end, true, null, false, copyOnWrite));
    }
    for (const { start, end, isNew, copyOnWrite } of this.#fetched) {
      const isTold = added.some((slot) => slot.start < end && start < slot.end);
      if (isNew || isTold) {
        arriving.push(this.#step("prefetch", start, end, null, true, false, copyOnWrite));
      }
    }
    const isSame = held === pins.held && pins.uncertain.length === 0;
    return { leaving, arriving, pins: isSame ? pins : { held, uncertain: outside } };
  }

  #step(
    kind: AttendStep["kind"],
    start: number,
    end: number,
    from: true | null,
    to: true | null,
    uncertain: boolean = false,
    copyOnWrite: boolean = false,
  ): AttendStep {
    return { kind, partition: this.#partition, start, end, copyOnWrite, from, to, uncertain };
  }
}

const NO_STEPS: readonly AttendStep[] = [];

/** The steps that end all pins of a partition that goes. */
export function unpinAll(partition: PartitionState): readonly AttendStep[] {
  const { held, uncertain } = partition.pins;
  if (held.isEmpty && uncertain.length === 0) return NO_STEPS;
  return [
    ...uncertain.map(({ start, end }): AttendStep => unpin(partition, start, end, true)),
    ...Array.from(held, ({ start, end }): AttendStep => unpin(partition, start, end, false)),
  ];
}

function unpin(partition: PartitionState, start: number, end: number, uncertain: boolean): AttendStep {
  const from = uncertain ? null : true;
  return { kind: "pin", partition, start, end, copyOnWrite: false, from, to: null, uncertain };
}

/** Adds a segment to `parts`, as a part of its own or to the last. */
function push(
  parts: Part[],
  start: number,
  end: number,
  part: number,
  isNew: boolean,
  copyOnWrite: boolean,
): void {
  const last = parts.at(-1);
  if (last === undefined || last.end !== start || last.part !== part) {
    parts.push({ start, end, part, isNew, copyOnWrite });
  } else {
    last.end = end;
    last.isNew ||= isNew;
  }
}
