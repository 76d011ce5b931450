/**
 * An owner in a Worker, to be ended.
 *
 * @module
 */

import { Mappable, MemoryRange, RegionManager, VaMapper } from "membacking";

const scope = globalThis as unknown as {
  onmessage: ((event: MessageEvent<readonly MessagePort[]>) => void) | null;
  postMessage(message: unknown): void;
};

const kept: unknown[] = [];

scope.onmessage = ({ data: ports }) => {
  const regions = new RegionManager(VaMapper.reserve(0x10_0000));
  const file = Mappable.memfd("ram", 0x8000);
  const ram = regions.newRegion({ name: "ram", range: new MemoryRange(0, 0x8000), priority: 0 });
  ram.addMapping({ rangeInRegion: new MemoryRange(0, 0x8000), mappable: file });
  ram.map();
  kept.push(regions, file);
  for (const port of ports) regions.serve(port);
  scope.postMessage("ready");
};
