import { accessOf, isSameAccess } from "../access.ts";
import type { Sight } from "../map/sight.ts";
import type { PartitionState, State } from "../map/state.ts";
import type { Span } from "../span.ts";
import type { Access } from "../targets.ts";
import { AttendTrack } from "./attend_track.ts";
import { BookTrack } from "./book_track.ts";
import type { AttendStep, SlotStep } from "./steps.ts";

/**
 * What follows one partition: its slots, which are backed parts of regions, or whole windows where holes fault; and where
 * that is asked for, what it pins and brings in early.
 */
export class SlotTrack extends BookTrack<Access> {
  /** The partition before. */
  readonly partition: PartitionState;
  /** Whether the request attaches it. */
  readonly isNew: boolean;
  /** The partition after the request, once the walk is over. */
  after: PartitionState;
  /** Pins that end before memory changes, and what begins after it has. */
  unpins: readonly AttendStep[] = [];
  pins: readonly AttendStep[] = [];
  readonly #capacity: number;
  readonly #spans: readonly Span[];
  /** Whether somebody wants to know what is written. */
  readonly #logs: boolean;
  readonly #pinsAll: boolean;
  readonly #prefetches: boolean;
  #attend: AttendTrack | null = null;

  /** A track from what the partition, which can hold `capacity` ranges, has been told to what shows in `next`. */
  constructor(partition: PartitionState, next: State, spans: readonly Span[], capacity: number, isNew: boolean) {
    super(partition.slots, next, spans);
    this.partition = this.after = partition;
    this.isNew = isNew;
    this.#capacity = capacity;
    this.#spans = spans;
    this.#logs = next.trackers > 0;
    this.#pinsAll = partition.pin && partition.target.pinRange !== undefined;
    this.#prefetches = partition.target.prefetchRange !== undefined;
    if (partition.pins.uncertain.length > 0) this.#attend = new AttendTrack(partition, spans, isNew);
  }

  override segment(start: number, end: number, before: Sight, after: Sight): void {
    super.segment(start, end, before, after);
    if (this.#pinsAll || (this.#prefetches && (before.params?.prefetch === true || after.params?.prefetch === true))) {
      this.#attend ??= new AttendTrack(this.partition, this.#spans, this.isNew);
      this.#attend.segment(start, end, before, after);
    }
  }

  /**
   * Says that the walk is over. `elsewhere` is how many ranges the same partition holds by other attachments.
   *
   * @throws {LimitError} If it cannot hold them all.
   */
  completeAll(elsewhere: number): void {
    const { id, target, offset, pin } = this.partition;
    const slots = this.complete(this.#capacity - elsewhere);
    let { pins } = this.partition;
    if (this.#attend !== null) {
      const done = this.#attend.complete(this.added);
      this.unpins = done.leaving;
      this.pins = done.arriving;
      pins = done.pins;
    }
    if (slots === this.partition.slots && pins === this.partition.pins) return;
    this.after = { id, target, offset, pin, slots, pins };
  }

  /** The steps that begin or end the log of slots that stay. */
  get turns(): readonly SlotStep[] {
    if (this.renamed.length === 0 || this.partition.target.setDirtyLog === undefined) return NO_TURNS;
    const { held } = this.partition.slots;
    return this.renamed.map(({ start, end, value }) => this.step(start, end, held.get(start)!, value, false));
  }

  protected wants({ region, params, mapping, writable }: Sight): Access | null {
    if (region === null || params === null) return null;
    const logs = this.#logs;
    if (region.holes === "fault") return accessOf(params.writable, params.executable, logs);
    return mapping === null ? null : accessOf(writable, params.executable, logs);
  }

  protected partOf(sight: Sight): number {
    return sight.region?.holes === "fault" ? sight.fragmentStart : sight.mappingStart;
  }

  protected isSame(a: Access, b: Access): boolean {
    return isSameAccess(a, b);
  }

  protected step(start: number, end: number, from: Access | null, to: Access | null, uncertain: boolean): SlotStep {
    return { kind: "slot", partition: this.partition, start, end, from, to, uncertain };
  }
}

const NO_TURNS: readonly SlotStep[] = [];
