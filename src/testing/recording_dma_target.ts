import type { MemoryRange } from "../core/memory_range.ts";
import type { RecordedCall } from "./call.ts";
import type { Faults } from "./faults.ts";
import { Pieces } from "./pieces.ts";
import { Recorder, type RecordingOptions, TargetStateError } from "./recorder.ts";

/** One mapping a {@linkcode RecordingDmaTarget} holds, as `mapDma` described it. */
export interface RecordedDmaMapping<M> {
  /** The GPAs, in bytes. */
  readonly range: MemoryRange;
  /** The host address behind the first of them. */
  readonly hva: number;
  /** What the memory is a part of; `null` for private memory. */
  readonly mappable: M | null;
  /** Where in `mappable` it starts, in bytes. */
  readonly fileOffset: number;
  /** Whether devices may write. */
  readonly writable: boolean;
  /** The type of the region. */
  readonly type: "ram" | "device";
}

/**
 * A DMA target without a device: it keeps the mappings it was told of, logs each call, and is strict. Mapping over a
 * mapping, or unmapping anything but exactly one mapping, throws {@linkcode TargetStateError}.
 *
 * @example Usage
 * ```ts
 * import { MemoryRange } from "membacking";
 * import { RecordingDmaTarget } from "membacking/testing";
 *
 * const iommu = new RecordingDmaTarget({ name: "iommu" });
 * const range = new MemoryRange(0x1000, 0x3000);
 * iommu.mapDma({ range, hva: 0x7f00_0000_1000, mappable: null, fileOffset: 0, writable: true, type: "ram" });
 * console.assert(iommu.at(0x2fff)?.writable === true);
 *
 * iommu.unmapDma(range);
 * console.assert(iommu.mappings.length === 0);
 * ```
 */
export class RecordingDmaTarget<M = unknown> {
  /** The name in the log and in errors: "dma" unless another was given. */
  readonly name: string;
  /** Every call, oldest first, the failed ones included. */
  readonly calls: RecordedCall[];
  /** The plan of failures it follows. */
  readonly faults: Faults;
  readonly #recorder: Recorder;
  readonly #pieces = new Pieces<RecordedDmaMapping<M>>();

  /** Makes a target with no mappings. */
  constructor(options: RecordingOptions = {}) {
    this.name = options.name ?? "dma";
    this.#recorder = new Recorder(options);
    this.calls = this.#recorder.calls;
    this.faults = this.#recorder.faults;
  }

  /** The mappings it holds now, lowest address first. */
  get mappings(): readonly RecordedDmaMapping<M>[] {
    return this.#pieces.list.map((piece) => piece.value);
  }

  /** The mapping that holds `gpa`. */
  at(gpa: number): RecordedDmaMapping<M> | undefined {
    return this.#pieces.at(gpa)?.value;
  }

  /**
   * Adds a mapping.
   *
   * @throws {TargetStateError} If its range is empty or overlaps a mapping that is there.
   */
  mapDma(request: RecordedDmaMapping<M>): undefined {
    const { range, hva, mappable, fileOffset, writable, type } = request;
    const call: RecordedCall = { target: this.name, method: "mapDma", range, writable };
    return this.#recorder.run(call, {
      act: () => {
        if (range.isEmpty) throw new TargetStateError(`Cannot map the empty range ${range}`);
        const there = this.#pieces.overlapping(range.start, range.end)[0];
        if (there) throw new TargetStateError(`Cannot map ${range}: ${there.value.range} is mapped`);
        const value = { range, hva, mappable, fileOffset, writable, type };
        this.#pieces.replace(range.start, range.end, [{ start: range.start, end: range.end, value }]);
      },
    });
  }

  /**
   * Removes a mapping.
   *
   * @throws {TargetStateError} If `range` is not exactly one mapping.
   */
  unmapDma(range: MemoryRange): undefined {
    const act = () => {
      if (!this.#pieces.at(range.start)?.value.range.equals(range)) {
        throw new TargetStateError(`Cannot unmap ${range}: it is not one mapping`);
      }
      this.#pieces.replace(range.start, range.end, []);
    };
    return this.#recorder.run({ target: this.name, method: "unmapDma", range }, { act, destroy: act });
  }
}
