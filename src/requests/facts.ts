import type { Mappable } from "../../ffi/files/mappable.ts";
import type { PartitionState, State } from "../core/map/state.ts";
import type { Facts } from "../core/plan/plan.ts";
import type { VaTarget } from "../core/targets.ts";

/** What the targets of a state say of themselves. Asked before planning, so that planning asks nobody. */
export function factsOf({ partitions }: State, va: VaTarget<Mappable>): Facts {
  const capacities = partitions.length === 1 ? [capacityOf(partitions[0]!)] : partitions.map(capacityOf);
  return { spareMappings: va.spareMappings ?? Infinity, capacities };
}

/** How many ranges a partition can hold, negative where it is disposed. */
function capacityOf({ target }: PartitionState): number {
  return target.disposed ?? false ? -1 : target.capacity ?? Infinity;
}
