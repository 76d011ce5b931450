import { accessOf, isSameAccess } from "../access.ts";
import type { Sight } from "../map/sight.ts";
import { EMPTY_BOOK, type PartitionState, type State } from "../map/state.ts";
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
  partition: PartitionState = NO_PARTITION;
  /** Whether the request attaches it. */
  isNew = false;
  /** The partition after the request, once the walk is over. */
  after: PartitionState = NO_PARTITION;
  /** Pins that end before memory changes, and what begins after it has. */
  unpins: readonly AttendStep[] = NO_ATTENDANCE;
  pins: readonly AttendStep[] = NO_ATTENDANCE;
  #capacity = 0;
  /** Whether somebody wants to know what is written. */
  #logs = false;
  #attend: AttendTrack | null = null;

  /**
   * Begins anew: from what the partition has been told, which can hold `capacity` ranges. With `logs` somebody wants to know
   * what is written.
   */
  follow(partition: PartitionState, spans: readonly Span[], capacity: number, logs: boolean, isNew: boolean): void {
    this.from(partition.slots, spans);
    if (this.partition !== partition) this.partition = partition;
    if (this.after !== partition) this.after = partition;
    this.isNew = isNew;
    this.#capacity = capacity;
    this.#logs = logs;
    if (this.#attend !== null) {
      this.#attend = null;
      this.unpins = this.pins = NO_ATTENDANCE;
    }
    if (partition.pins.uncertain.length > 0) this.#attend = new AttendTrack(partition, spans, isNew);
  }

  override segment(start: number, end: number, before: Sight, after: Sight): void {
    super.segment(start, end, before, after);
    const { pin } = this.partition;
    if (pin || (before.params !== null && before.params.prefetch) || (after.params !== null && after.params.prefetch)) {
      this.#attend ??= new AttendTrack(this.partition, this.found.spans, this.isNew);
      this.#attend.segment(start, end, before, after);
    }
  }

  override get isIdle(): boolean {
    return this.#attend === null && super.isIdle;
  }

  /**
   * Says that the walk to `next` is over. `elsewhere` is how many ranges the same partition holds by other attachments.
   *
   * @throws {LimitError} If it cannot hold them all.
   */
  completeAll(next: State, elsewhere: number): void {
    const { id, target, offset, pin } = this.partition;
    const slots = this.complete(next, this.#capacity - elsewhere);
    let { pins } = this.partition;
    if (this.#attend !== null) {
      const done = this.#attend.complete(this.found.added);
      this.unpins = done.leaving;
      this.pins = done.arriving;
      pins = done.pins;
    }
    if (slots === this.partition.slots && pins === this.partition.pins) return;
    this.after = { id, target, offset, pin, slots, pins };
  }

  /** The steps that begin or end the log of slots that stay. */
  get turns(): readonly SlotStep[] {
    const { renamed } = this.found;
    if (renamed.length === 0 || this.partition.target.setDirtyLog === undefined) return NO_TURNS;
    const { held } = this.partition.slots;
    return renamed.map(({ start, end, value }) => this.step(start, end, held.get(start)!, value, false));
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
const NO_ATTENDANCE: readonly AttendStep[] = [];
/** Nobody: what a track follows before it is used. */
const NO_PARTITION: PartitionState = {
  id: 0,
  target: { mapRange() {}, unmapRange() {} },
  offset: 0,
  pin: false,
  slots: EMPTY_BOOK,
  pins: EMPTY_BOOK,
};
