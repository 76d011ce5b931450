/**
 * A process that does all it can, over and over, until it is killed: kill_child.ts FD AT
 *
 * @module
 */

import { Mappable, MemoryRange, ProcessClient } from "membacking";

const [fd, at] = Deno.args.map(Number);
if (fd === undefined || at === undefined) throw new Error("kill_child.ts FD AT");
const WHOLE = new MemoryRange(0, 0x4000);
while (true) {
  const client = await ProcessClient.connect(fd);
  console.log("connected");
  for (let round = 0; round < 20; round++) {
    const region = await client.newRegion({ name: "killed", range: MemoryRange.of(at, 0x4000), priority: 1 });
    using file = round % 2 === 0 ? await client.memfd("killed", 0x4000) : Mappable.memfd("killed too", 0x4000);
    await region.addMapping({ rangeInRegion: WHOLE, mappable: file });
    const bar = client.newDeviceMemory("killed bar", 0x2000);
    await bar.map({ offset: 0, mappable: file, length: 0x2000 });
    await Promise.all([region.map(), bar.mapToGuest(at + 0x4000, true)]);
    {
      using _lock = client.memory.lock(MemoryRange.of(at, 0x2000), { write: true });
      using _ram = round % 4 === 0 ? client.memory.lock(new MemoryRange(0x1000, 0x2000)) : undefined;
      client.memory.fill(at, 0x4000, round);
      client.memory.writeUint32(round * 4, round);
      client.memory.readUint8(at + 0x4000);
    }
    await Promise.all([region.unmap(), region.map({ writable: false }), client.inspect()]);
    await bar.unmapFromGuest();
    await region.teardown();
  }
  client[Symbol.dispose]();
}
