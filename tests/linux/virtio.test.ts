import { assert, assertEquals } from "@std/assert";
import { Mappable } from "membacking";
import { VirtioBlk } from "../../examples/linux/virtio/blk.ts";
import { VirtioConsole } from "../../examples/linux/virtio/console.ts";
import { Linux, linuxTest } from "./rig.ts";

const SECTORS = 2048;

linuxTest("Linux's driver reads and writes a disk by rings in guest memory", async () => {
  using image = Mappable.memfd("disk", SECTORS * 512);
  const pattern = Uint8Array.from({ length: image.size }, (_, i) => (i * 7 + (i >>> 9)) & 0xff);
  image.write(0, pattern);
  await using linux = await Linux.boot({ devices: () => [new VirtioBlk(image)] });
  const { shell } = linux;
  await shell.output("modprobe -a virtio_mmio virtio_blk");
  assertEquals(await shell.output("cat /sys/block/vda/size /sys/block/vda/serial"), `${SECTORS}\nmembacking`);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", pattern)).toHex();
  assertEquals(await shell.output("sha256sum </dev/vda"), `${digest}  -`);

  await shell.output("yes membacking | dd of=/dev/vda bs=4k seek=8 count=64 iflag=fullblock conv=fsync 2>/dev/null");
  const written = new Uint8Array(64 * 4096);
  image.read(8 * 4096, written);
  assertEquals(new TextDecoder().decode(written).slice(0, 22), "membacking\nmembacking\n");
  const around = new Uint8Array(4096);
  image.read(7 * 4096, around);
  assertEquals(around, pattern.slice(7 * 4096, 8 * 4096));
  assertEquals(linux.broken, []);
});

linuxTest("a disk whose image cannot be written is read-only to Linux", async () => {
  const path = Deno.makeTempFileSync();
  Deno.truncateSync(path, 0x10_0000);
  using image = Mappable.open(path);
  Deno.removeSync(path);
  await using linux = await Linux.boot({ devices: () => [new VirtioBlk(image)] });
  await linux.shell.output("modprobe -a virtio_mmio virtio_blk");
  assertEquals(await linux.shell.output("cat /sys/block/vda/ro"), "1");
  const { status } = await linux.shell.run("echo x >/dev/vda");
  assert(status !== 0);
});

linuxTest("a terminal of virtio carries text both ways", async () => {
  let said = "";
  const { promise: whole, resolve: isWhole } = Promise.withResolvers<void>();
  const terminal = new VirtioConsole((bytes) => {
    said += new TextDecoder().decode(bytes);
    if (said.endsWith("\n")) isWhole();
  });
  await using linux = await Linux.boot({ devices: () => [terminal] });
  const { shell } = linux;
  await shell.output("modprobe -a virtio_mmio virtio_console");
  await shell.output("exec 3<>/dev/hvc0; stty raw -echo <&3");
  const long = "0123456789abcdef".repeat(250);
  terminal.type(new TextEncoder().encode(`${long}\n`));
  await shell.output("read -r line <&3; echo back: $line >&3");
  await whole;
  assertEquals(said.trimEnd(), `back: ${long}`);
  assertEquals(linux.broken, []);
});
