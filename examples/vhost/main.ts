/**
 * A guest reads and writes sectors of a disk that QEMU's storage daemon serves, straight into guest memory that this
 * process manages, while memory comes and goes and the daemon is killed and started again.
 *
 * ```sh
 * deno task vhost
 * ```
 *
 * @module
 */

import { MemoryRange } from "membacking";
import type { VhostUserMemory } from "membacking/vhost-user";
import { DiskMachine } from "./machine.ts";
import { makeImage, StorageDaemon, whyNoDaemon } from "./storage_daemon.ts";

const SECTORS = 65_536;
const HOT = new MemoryRange(0x1_0000_0000, 0x1_4000_0000);
const ROUNDS = 2000;

/** Says what happened, and what the back end has now. */
function show(what: string, memory: VhostUserMemory): void {
  console.log(what);
  if (memory.table.length === 0) console.log("    the back end has no memory");
  for (const { range, fileOffset, backing } of memory.table) {
    console.log(`    ${String(range).padEnd(24)} ${backing} at 0x${fileOffset.toString(16)}`);
  }
}

/** Throws unless the sector at `gpa` is the one it should be. */
function check(machine: DiskMachine, gpa: number, sector: number): void {
  const found = machine.guest.memory.readUint32(gpa) - 1;
  if (found !== sector) throw new Error(`Sector ${sector} was read and ${found} is there`);
}

async function main(): Promise<void> {
  const missing = whyNoDaemon();
  if (missing !== undefined) throw new Error(missing);
  const directory = Deno.makeTempDirSync();
  const [image, socket] = [`${directory}/disk.img`, `${directory}/disk.sock`];
  makeImage(image, SECTORS);
  await using stack = new AsyncDisposableStack();
  stack.defer(() => Deno.removeSync(directory, { recursive: true }));

  let daemon = StorageDaemon.start(image, socket);
  stack.defer(() => daemon.kill());
  const { promise: gone, resolve: isGone } = Promise.withResolvers<void>();
  const machine = stack.use(await DiskMachine.start(socket, { onDisconnect: () => isGone() }));
  const { guest, frontend, memory } = machine;
  show(`A disk of ${machine.sectors} sectors; its back end has ${frontend.memorySlots} memory slots:`, memory);

  const buffer = 0x10_0000;
  await machine.request({ type: "read", sector: 1234, buffer });
  check(machine, buffer, 1234);
  const read = await machine.request({ type: "read", sector: 7, buffer, count: ROUNDS });
  const write = await machine.request({ type: "write", sector: 7, buffer, count: ROUNDS });
  console.log(`A sector read takes ${read.toFixed(1)} us, one written ${write.toFixed(1)} us (of ${ROUNDS} each)`);

  let start = performance.now();
  let dimm = guest.addRam({ name: "hot-added", ranges: [HOT] });
  show(`1 GiB added in ${(performance.now() - start).toFixed(2)} ms:`, memory);
  const hot = await machine.request({ type: "read", sector: 4321, buffer: HOT.start, count: ROUNDS });
  check(machine, HOT.start, 4321);
  console.log(`Into it, a sector read takes ${hot.toFixed(1)} us`);
  start = performance.now();
  await dimm.remove();
  show(`Removed again in ${(performance.now() - start).toFixed(2)} ms:`, memory);

  await daemon.kill();
  await gone;
  show("The daemon is killed:", memory);
  dimm = guest.addRam({ name: "hot-added", ranges: [HOT] }); // there is nobody to be told
  start = performance.now();
  const waiting = machine.request({ type: "read", sector: 99, buffer: HOT.start });
  daemon = StorageDaemon.start(image, socket);
  await frontend.reconnect({ patience: 10_000 });
  await waiting;
  check(machine, HOT.start, 99);
  const took = (performance.now() - start).toFixed(0);
  show(`A new one has carried out what the guest asked for meanwhile, ${took} ms after that:`, memory);
}

if (import.meta.main) {
  try {
    await main();
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    Deno.exit(1);
  }
}
