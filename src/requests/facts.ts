import type { Mappable } from "../../ffi/files/mappable.ts";
import type { PartitionState, State } from "../core/map/state.ts";
import type { Facts } from "../core/plan/plan.ts";
import type { VaTarget } from "../core/targets.ts";

/** What targets say of themselves: the object is kept from one request to the next, what it says is of the latest. */
export class TargetFacts implements Facts {
  spareMappings = 0;
  readonly capacities: number[] = [];

  /** Asks the targets of a state. Before planning, so that planning asks nobody. */
  of({ partitions }: State, va: VaTarget<Mappable>): this {
    const { capacities } = this;
    for (let i = 0; i < partitions.length; i++) capacities[i] = capacityOf(partitions[i]!);
    if (capacities.length > partitions.length) capacities.length = partitions.length;
    this.spareMappings = limit(va.spareMappings);
    return this;
  }
}

/** How many ranges a partition can hold, negative where it is disposed. */
function capacityOf({ target }: PartitionState): number {
  return target.disposed ?? false ? -1 : limit(target.capacity);
}

/** What a target says at any later time than it was checked may be anything: what is no limit limits nothing. */
function limit(said: number | undefined): number {
  return typeof said === "number" && said >= 0 ? said : Infinity;
}
