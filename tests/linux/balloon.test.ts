import { assert, assertEquals, assertGreaterOrEqual } from "@std/assert";
import { VirtioBalloon } from "../../examples/linux/virtio/balloon.ts";
import { readProc, status } from "../support/proc.ts";
import { Linux, linuxTest } from "./rig.ts";

const MIB = 0x10_0000;

/** How much memory the file behind the guest's RAM really takes, in bytes. */
function ramTaken(): number {
  for (const { name } of Deno.readDirSync("/proc/self/fd")) {
    const path = `/proc/self/fd/${name}`;
    try {
      if (Deno.readLinkSync(path).startsWith("/memfd:ram ")) return (Deno.statSync(path).blocks ?? 0) * 512;
    } catch {
      // The descriptor by which the folder is read is gone.
    }
  }
  throw new Error("There is no RAM");
}

/** Waits until something is so, while the machine runs. */
async function until(isSo: () => boolean): Promise<void> {
  while (!isSo()) await new Promise((resolve) => setTimeout(resolve, 20));
}

linuxTest("what Linux does not use any more is the host's again, by itself and by a balloon", async () => {
  let balloon: VirtioBalloon | undefined;
  // Linux reports nothing of a zone that has less than 64 MiB free.
  await using linux = await Linux.boot({
    below: 128 * MIB,
    above: 160 * MIB,
    devices: ({ guest }) => [balloon = new VirtioBalloon((range) => guest.discard(range))],
  });
  assert(balloon !== undefined);
  const { shell } = linux;
  await shell.output("mkdir -p /dev/shm; mount -t tmpfs -o size=100% shm /dev/shm");
  await shell.output(
    "dd if=/dev/zero of=/dev/shm/file bs=1M count=64 2>/dev/null; rm /dev/shm/file",
  );
  const [taken, resident] = [ramTaken(), status("RssShmem")];
  assertGreaterOrEqual(taken, 64 * MIB);

  // Free pages are reported a while after they were freed, 2 MiB and more at a time.
  await shell.output("modprobe -a virtio_mmio virtio_balloon");
  await until(() => ramTaken() <= taken - 48 * MIB);
  assertGreaterOrEqual(balloon.reported, 48 * MIB);
  assert(status("RssShmem") <= resident - 48 * MIB / 1024, readProc("/proc/self/status"));

  const free = async () => Number(await shell.output("awk '/MemFree/ { print $2 }' /proc/meminfo")) * 1024;
  const before = await free();
  balloon.target = 64 * MIB;
  await until(() => balloon?.actual === 64 * MIB);
  assertEquals(balloon.inflated, 64 * MIB);
  assert(await free() <= before - 56 * MIB);
  balloon.target = 0;
  await until(() => balloon?.actual === 0);
  // What came back can be used, and holds what is written to it.
  await shell.output("yes membacking | dd of=/dev/shm/file bs=1M count=4 iflag=fullblock 2>/dev/null");
  assertEquals(await shell.output("head -n 1000 /dev/shm/file | uniq -c | awk '{ print $1, $2 }'"), "1000 membacking");
  assertEquals(linux.broken, []);
});
