/**
 * Targets that fail at any call, during undo too, and callbacks that throw: a request is carried out whole or not at all.
 *
 * @module
 */

import { Mappable, MappingError, MemoryRange, type RegionHandle, RegionManager, VaMapper } from "membacking";
import { FAILURE_MODES, Faults, RecordingDmaTarget, RecordingPartition } from "membacking/testing";
import { type Family, type Notes, Planted } from "../family.ts";
import type { Random } from "../random.ts";
import { baseline, leakedAtLast } from "../resources.ts";

const PAGE = 0x1000;
const PAGES = 64;

/** What shows at each page: the number of the file, or -1 for nothing. */
function shown(manager: RegionManager): number[] {
  return Array.from({ length: PAGES }, (_, page) => {
    try {
      return manager.memory.readUint8(page * PAGE);
    } catch {
      return -1;
    }
  });
}

/** One request, chosen at random. */
export function anyRequest(
  random: Random,
  manager: RegionManager,
  regions: RegionHandle[],
  files: readonly Mappable[],
) {
  const region = regions.length > 0 ? random.of(regions) : undefined;
  const pages = () => MemoryRange.of(random.below(12) * PAGE, (1 + random.below(4)) * PAGE);
  const requests: (() => unknown)[] = [
    () => {
      const range = MemoryRange.of(random.below(PAGES - 16) * PAGE, 16 * PAGE);
      regions.push(manager.newRegion({ name: "r", range, priority: random.below(4) }));
    },
    () => region?.map({ writable: !random.oneIn(3) }),
    () => region?.map(),
    () => region?.unmap(),
    () => region?.removeMappings(pages()),
    () => {
      if (!random.oneIn(4) || region === undefined) return;
      region[Symbol.dispose]();
      regions.splice(regions.indexOf(region), 1);
    },
    ...Array.from({ length: 4 }, () => () =>
      region?.addMapping({
        rangeInRegion: pages(),
        mappable: random.oneIn(8) ? "private" : random.of(files),
        writable: !random.oneIn(4),
      })),
  ];
  if (!random.oneIn(6)) return random.of(requests);
  const parts = Array.from({ length: 1 + random.below(4) }, () => random.of(requests));
  const abandon = random.oneIn(4);
  return () =>
    manager.batch(() => {
      for (const part of parts) part();
      if (abandon) throw new Planted("from a batch");
    });
}

/** A region manager with targets that can be made to fail. */
export class FaultyMachine implements Disposable {
  readonly faults = new Faults();
  readonly va = VaMapper.reserve(2 ** 24);
  readonly files: readonly Mappable[];
  readonly regions: RegionHandle[] = [];
  readonly manager: RegionManager;
  readonly partition = new RecordingPartition({ faults: this.faults });
  readonly dma = new RecordingDmaTarget({ faults: this.faults });
  /** Whether nothing fails any more. */
  isCalm = false;

  constructor(random: Random) {
    this.files = Array.from({ length: 5 }, (_, i) => {
      const file = Mappable.memfd(`file ${i}`, PAGES * PAGE);
      file.write(0, new Uint8Array(PAGES * PAGE).fill(i + 1));
      return file;
    });
    this.manager = new RegionManager(this.va, {
      overlap: "any",
      quiesce: () => {
        if (this.isCalm) return { [Symbol.dispose]() {} };
        if (random.oneIn(50)) throw new Planted("from quiesce");
        return {
          [Symbol.dispose]() {
            if (random.oneIn(100)) throw new Planted("from the end of quiesce");
          },
        };
      },
      logger: {
        ...{ debug() {}, info() {}, error() {} },
        warn() {
          throw new Planted("from a logger");
        },
      },
    });
    this.manager.addPartition(this.partition);
    this.manager.addDmaTarget(this.dma);
  }

  /** Makes one request, and claims that it happened whole or not at all. */
  request(random: Random, notes: Notes, how: (request: () => unknown) => unknown = (request) => request()): void {
    const { manager, regions } = this;
    const before = JSON.stringify(manager.inspect());
    const visible = shown(manager);
    let failed: unknown;
    const known = [...regions];
    notes.try("a request", () => {
      try {
        how(anyRequest(random, manager, regions, this.files));
      } catch (error) {
        failed = error;
        throw error;
      }
    });
    if (failed === undefined) return;
    regions.splice(0, Infinity, ...known.filter((region) => isThere(region)));
    if (failed instanceof MappingError && (failed.outOfStep?.length ?? 0) > 0) return;
    notes.claim(JSON.stringify(manager.inspect()) === before, `a request that failed has changed the map: ${failed}`);
    notes.claim(shown(manager).join() === visible.join(), `a request that failed has changed what shows: ${failed}`);
  }

  [Symbol.dispose](): void {
    this.isCalm = true;
    this.faults.reset();
    this.manager[Symbol.dispose]();
    this.va[Symbol.dispose]();
    for (const file of this.files) file[Symbol.dispose]();
  }
}

function isThere(region: RegionHandle): boolean {
  try {
    return region.visible !== undefined;
  } catch {
    return false;
  }
}

const family: Family = {
  name: "faults",
  async attack(random, notes) {
    new FaultyMachine(random)[Symbol.dispose]();
    const before = await baseline();
    {
      using machine = new FaultyMachine(random);
      for (let i = 0; i < 400; i++) {
        if (random.oneIn(3)) {
          machine.faults.failAfter(random.below(6), { mode: random.of(FAILURE_MODES), times: 1 + random.below(3) });
        }
        machine.request(random, notes);
      }
    }
    for (const left of await leakedAtLast(before)) notes.broken(left);
  },
};

export default family;
