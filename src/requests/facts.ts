import type { Mappable } from "../../ffi/files/mappable.ts";
import type { PartitionState, State } from "../core/map/state.ts";
import type { Facts } from "../core/plan/plan.ts";
import type { VaTarget } from "../core/targets.ts";

/** What the targets of a state say of themselves. Asked before planning, so that planning asks nobody. */
export function factsOf({ partitions }: State, va: VaTarget<Mappable>): Facts {
  const capacities = partitions.length === 1 ? [capacityOf(partitions[0]!)] : partitions.map(capacityOf);
  return { spareMappings: limit(va.spareMappings), capacities };
}

/** How many ranges a partition can hold, negative where it is disposed. */
function capacityOf({ target }: PartitionState): number {
  return target.disposed ?? false ? -1 : limit(target.capacity);
}

/** What a target says at any later time than it was checked may be anything: what is no limit limits nothing. */
function limit(said: number | undefined): number {
  return typeof said === "number" && said >= 0 ? said : Infinity;
}
