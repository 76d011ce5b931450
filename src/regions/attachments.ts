import { addDmaTarget, addPartition, type Change, removeDmaTarget, removePartition } from "../core/map/edits.ts";
import type { State } from "../core/map/state.ts";
import { hex } from "../core/hex.ts";
import { GPA_LIMIT, PAGE_SIZE } from "../core/memory_range.ts";
import type { Partition } from "../core/targets.ts";
import type { MemoryMap } from "../requests/memory_map.ts";
import { checkBoolean } from "../core/check_boolean.ts";
import { checkDmaTarget, checkPartition } from "../targets/checks.ts";
import type { DmaTarget } from "../targets/targets.ts";
import type { DmaTargetOptions, PartitionOptions } from "./options.ts";

/** Partitions and DMA targets that come and go, as requests. */
export class Attachments {
  readonly #map: MemoryMap;
  readonly #length: number;
  readonly #nextId: () => number;

  /** `length` is where guest memory ends, in bytes. */
  constructor(map: MemoryMap, length: number, nextId: () => number) {
    this.#map = map;
    this.#length = length;
    this.#nextId = nextId;
  }

  addPartition(partition: Partition, options: PartitionOptions): Disposable {
    const { offset = 0, pin = false } = options;
    checkPartition(partition);
    checkBoolean(pin, "pin");
    const length = this.#length;
    if (!Number.isSafeInteger(offset) || offset % PAGE_SIZE !== 0) {
      throw new RangeError(`Partition offset must be a multiple of ${hex(PAGE_SIZE)}, got ${offset}`);
    }
    if (offset < 0 || offset + length > GPA_LIMIT) {
      throw new RangeError(
        `Guest memory of ${hex(length)} bytes does not fit below ${hex(GPA_LIMIT)} at offset ${hex(offset)}`,
      );
    }
    if (this.#map.current.partitions.some((at) => at.target === partition && Math.abs(at.offset - offset) < length)) {
      throw new TypeError(
        `The partition is attached already, attach it again at least ${hex(length)} bytes away or not at all`,
      );
    }
    const id = this.#nextId();
    this.#map.check();
    this.#map.request("add a partition", null, addPartition(this.#map.current, { id, target: partition, offset, pin }));
    return this.#attachment("remove a partition", (state) => removePartition(state, id));
  }

  addDmaTarget(target: DmaTarget, options: DmaTargetOptions): Disposable {
    const { needsFd = false, pins = false } = options;
    checkDmaTarget(target);
    checkBoolean(needsFd, "needsFd");
    checkBoolean(pins, "pins");
    if (this.#map.current.dmaTargets.some((attached) => attached.target === target)) {
      throw new TypeError("The DMA target is attached already, dispose the handle of the first time to attach it anew");
    }
    const id = this.#nextId();
    this.#map.check();
    this.#map.request("add a DMA target", null, addDmaTarget(this.#map.current, { id, target, needsFd, pins }));
    return this.#attachment("remove a DMA target", (state) => removeDmaTarget(state, id));
  }

  /** What undoes an attachment, as long as there is something to undo. */
  #attachment(name: string, without: (state: State) => Change): Disposable {
    return {
      [Symbol.dispose]: () => {
        if (this.#map.closed) return;
        this.#map.check();
        this.#map.request(name, null, without(this.#map.current));
      },
    };
  }
}
