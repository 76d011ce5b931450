/**
 * A process whose owner is killed, for a test.
 *
 * @module
 */

import { MemoryRange, ProcessClient } from "membacking";
import { STEP } from "./process_owner.ts";

const client = await ProcessClient.connect(Number(Deno.args[0]));
const region = await client.newRegion({ name: "mine", range: MemoryRange.of(0x1_0000, 0x1000), priority: 1 });
using file = await client.memfd("mine", 0x1000);
await region.addMapping({ rangeInRegion: new MemoryRange(0, 0x1000), mappable: file });
await region.map();
client.memory.writeUint8(STEP, 1);
while (client.memory.readUint8(STEP) !== 2) await new Promise((resolve) => setTimeout(resolve, 5));
const say = (what: string) => (error: unknown) => console.log(`${what}: ${error}`);
// The owner holds a lock on it, so this waits.
const pending = region.teardown().catch(say("pending"));
await client.inspect();
client.memory.writeUint8(STEP, 3);
await pending;
try {
  client.memory.readUint8(0);
} catch (error) {
  say("memory")(error);
}
await client.memfd("x", 0x1000).catch(say("request"));
console.log(`disposed: ${client.disposed}`);
