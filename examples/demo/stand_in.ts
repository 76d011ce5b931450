import type { RegionManager } from "membacking";
import { RecordingPartition } from "membacking/testing";
import type { Guest } from "./guest.ts";
import { fromWord, toWord } from "./word.ts";

/**
 * What the demo shows where there is no KVM: the host loads and stores, where and as a guest could according to what
 * the partition was told. It proves nothing about guests.
 */
export class StandIn implements Guest {
  readonly who = "host";
  readonly partition = new RecordingPartition({ name: "partition" });
  #regions: RegionManager | undefined;

  start(regions: RegionManager): void {
    this.#regions = regions;
  }

  load(gpa: number): string {
    const access = this.partition.accessAt(gpa);
    return access === null || !this.#regions ? fromWord(toWord("mmio")) : fromWord(this.#regions.memory.read(gpa, 4));
  }

  store(gpa: number, word: string): string {
    if (!this.partition.accessAt(gpa)?.writable) {
      return `is an MMIO exit, "${word}" at 0x${gpa.toString(16)}`;
    }
    this.#regions?.memory.write(gpa, toWord(word));
    return "reaches memory";
  }

  [Symbol.dispose](): void {
    this.partition[Symbol.dispose]();
  }
}
