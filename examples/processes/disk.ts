/**
 * The process of the disk: `deno run --allow-ffi --allow-read=IMAGE --allow-write=IMAGE disk.ts FD IMAGE`
 *
 * It has guest memory, a file, and nothing else. A byte on its standard input is the doorbell.
 *
 * @module
 */

import { Mappable, ProcessClient } from "membacking";
import { BlockDevice } from "../virtqueue/block_device.ts";
import { byAccessors } from "../virtqueue/ring_memory.ts";
import { SplitQueue } from "../virtqueue/split_queue.ts";
import { QUEUE } from "./layout.ts";

const [fd, image = ""] = Deno.args;
using client = await ProcessClient.connect(Number(fd));
using disk = Mappable.open(image, { write: true });

const device = new BlockDevice(client.memory, disk);
await Deno.stdout.write(new Uint8Array([1]));

let queue: SplitQueue | undefined;
for await (const _doorbell of Deno.stdin.readable) {
  // The queue is this process's from the first ring on, and it goes on where others have given back their last request.
  queue ??= new SplitQueue(byAccessors(client.memory), QUEUE, { resume: true });
  for (let chain = queue.pop(); chain !== null; chain = queue.pop()) queue.push(chain, device.serve(chain));
}
