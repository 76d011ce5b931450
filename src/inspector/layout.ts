/**
 * What is worked out once for each set of regions: its axis, and which of them are devices'.
 *
 * @module
 */

import { type Layers, regionsIn } from "../core/map/layers.ts";
import type { Region } from "../core/map/region.ts";
import { Axis } from "./axis.ts";

/** A set of regions, mapped or not. */
export interface Layout {
  /** Tells layouts apart. */
  readonly id: number;
  /** Oldest first. */
  readonly regions: readonly Region[];
  /** Those of type `"device"`, oldest first. */
  readonly devices: readonly Region[];
  /** Folded where there is no region. */
  readonly axis: Axis;
}

/** How many are kept: what is looked at, what it is compared with, and what came before. */
const MOST = 4;

/** The layouts last looked at. */
export class Layouts {
  /** By the layers they were worked out of, the one longest unused first. */
  readonly #known = new Map<Layers, Layout>();
  #count = 0;

  /** The layout of `layers`, which are the same object as long as no region comes or goes. */
  of(layers: Layers): Layout {
    const layout = this.#known.get(layers) ?? this.#make(layers);
    this.#known.delete(layers);
    this.#known.set(layers, layout);
    for (const oldest of this.#known.keys()) {
      if (this.#known.size <= MOST) break;
      this.#known.delete(oldest);
    }
    return layout;
  }

  #make(layers: Layers): Layout {
    const regions = regionsIn(layers);
    return {
      id: ++this.#count,
      regions,
      devices: regions.filter(({ type }) => type === "device"),
      axis: Axis.folded(regions.map(({ range }) => range)),
    };
  }
}
