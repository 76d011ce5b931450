import { accessOf, isSameAccess } from "../access.ts";
import type { Sight } from "../map/sight.ts";
import type { PartitionState, State } from "../map/state.ts";
import type { Span } from "../span.ts";
import type { Access } from "../targets.ts";
import { BookTrack } from "./book_track.ts";
import type { SlotStep, Step } from "./steps.ts";

/** The slots of one partition: backed parts of regions, or whole windows where holes fault. */
export class SlotTrack extends BookTrack<Access> {
  readonly #partition: PartitionState;
  /** Whether somebody wants to know what is written. */
  readonly #logs: boolean;

  /** A track from what the partition has been told to what shows in `next`. */
  constructor(partition: PartitionState, next: State, spans: readonly Span[]) {
    super(partition.slots, next, spans);
    this.#partition = partition;
    this.#logs = next.trackers > 0;
  }

  /** Appends the steps that begin or end the log of slots that stay. */
  pushTurns(steps: Step[]): void {
    if (this.renamed.length === 0 || this.#partition.target.setDirtyLog === undefined) return;
    const { held } = this.#partition.slots;
    for (const { start, end, value } of this.renamed) steps.push(this.step(start, end, held.get(start)!, value, false));
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
    return { kind: "slot", partition: this.#partition, start, end, from, to, uncertain };
  }
}
