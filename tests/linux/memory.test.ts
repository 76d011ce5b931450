import { assert, assertEquals, assertGreater } from "@std/assert";
import { createHash } from "node:crypto";
import type { GuestMemory } from "membacking";
import { HOTPLUG } from "../../examples/linux/memory.ts";
import { VirtioMem } from "../../examples/linux/virtio/mem.ts";
import { Linux, linuxTest } from "./rig.ts";

const MIB = 0x10_0000;

/** What Linux calls its memory, in bytes. */
async function memTotal(linux: Linux): Promise<number> {
  return Number(await linux.shell.output("awk '/MemTotal/ { print $2 }' /proc/meminfo")) * 1024;
}

/** How many pages of a range begin with something else than zeros. */
function usedPages(memory: GuestMemory, start: number, length: number): number {
  let count = 0;
  for (let gpa = start; gpa < start + length; gpa += 4096) if (memory.readBigUint64(gpa) !== 0n) count++;
  return count;
}

linuxTest("memory that is added is Linux's, and what it gives back is gone", async () => {
  let mem: VirtioMem | undefined;
  await using linux = await Linux.boot({
    devices: ({ guest }) => {
      mem = new VirtioMem({
        region: HOTPLUG,
        block: 2 * MIB,
        add: (range) => guest.addRam({ name: "plugged", ranges: [range] }),
      });
      return [mem];
    },
  });
  const { shell, machine } = linux;
  assert(mem !== undefined);
  const before = await memTotal(linux);
  const ranges = machine.memory.guest.ramRanges.length;
  mem.requested = 128 * MIB;
  await shell.output("modprobe -a virtio_mmio virtio_mem");
  await shell.output(
    "until [ $(awk '/MemTotal/ { print $2 }' /proc/meminfo) -ge " + (before / 1024 + 120_000) +
      " ]; do sleep 0.1; done",
  );
  assertEquals(mem.plugged, 128 * MIB);
  assertEquals(machine.memory.guest.ramRanges.length, ranges + 64);
  const grown = await memTotal(linux);
  assertEquals(grown - before, 128 * MIB);

  // It is used, first of all for what can be moved, such as a file in memory, which reads back as it was written.
  const file = "/dev/shm/file";
  await shell.output(
    `mkdir -p /dev/shm; mount -t tmpfs -o size=100% shm /dev/shm; yes membacking | dd of=${file} bs=1M count=32 iflag=fullblock`,
  );
  assertGreater(usedPages(machine.memory.guest.memory, HOTPLUG.start, 128 * MIB) * 4096, 16 * MIB);
  const content = new TextEncoder().encode("membacking\n".repeat(Math.ceil(32 * MIB / 11))).subarray(0, 32 * MIB);
  const digest = createHash("md5").update(content).digest("hex");
  assertEquals(await shell.output(`md5sum <${file}; rm ${file}`), `${digest}  -`);

  mem.requested = 0;
  await shell.output(
    "until [ $(awk '/MemTotal/ { print $2 }' /proc/meminfo) -le " + (before / 1024) + " ]; do sleep 0.1; done",
  );
  assertEquals(await memTotal(linux), before);
  assertEquals(mem.plugged, 0);
  assertEquals(machine.memory.guest.ramRanges.length, ranges);
  assertEquals(linux.broken, []);
});
