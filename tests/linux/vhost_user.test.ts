import { assertEquals } from "@std/assert";
import { VhostUserFrontend, VhostUserMemory } from "membacking/vhost-user";
import { VhostBlk } from "../../examples/linux/virtio/vhost_blk.ts";
import { StorageDaemon, whyNoDaemon } from "../../examples/vhost/storage_daemon.ts";
import { testUnless } from "../support/require.ts";
import { Linux, noLinux } from "./rig.ts";

const LENGTH = 0x10_0000;

testUnless(
  noLinux ?? whyNoDaemon(),
  "Linux's disk is served by qemu-storage-daemon, out of Linux's own memory",
  async () => {
    const folder = Deno.makeTempDirSync();
    const pattern = Uint8Array.from({ length: LENGTH }, (_, i) => (i * 5 + (i >>> 9)) & 0xff);
    Deno.writeFileSync(`${folder}/disk`, pattern);
    await using daemon = StorageDaemon.start(`${folder}/disk`, `${folder}/socket`);
    using frontend = await VhostUserFrontend.connect(daemon.socket, { patience: 20_000, deadline: 20_000 });
    const failed: unknown[] = [];
    await using disk = await VhostBlk.open(frontend, (error) => failed.push(error));
    using memory = new VhostUserMemory(frontend);
    await using linux = await Linux.boot({
      devices: ({ guest }) => {
        guest.regions.addDmaTarget(memory);
        return [disk];
      },
    });
    const { shell } = linux;
    await shell.output("modprobe -a virtio_mmio virtio_blk");
    assertEquals(await shell.output("cat /sys/block/vda/size"), `${LENGTH / 512}`);
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", pattern)).toHex();
    assertEquals(await shell.output("sha256sum </dev/vda"), `${digest}  -`);
    await shell.output("yes membacking | dd of=/dev/vda bs=4k seek=8 count=16 iflag=fullblock conv=fsync 2>/dev/null");
    const written = Deno.readFileSync(`${folder}/disk`).subarray(8 * 4096, 9 * 4096);
    assertEquals(new TextDecoder().decode(written).slice(0, 22), "membacking\nmembacking\n");
    assertEquals([failed, linux.broken], [[], []]);
    assertEquals((await linux.powerOff()).why, "off");
    Deno.removeSync(folder, { recursive: true });
  },
);
