import { assert, assertEquals, assertMatch } from "@std/assert";
import { openFds } from "../support/proc.ts";
import { Linux, linuxTest } from "./rig.ts";

const MIB = 0x10_0000;

linuxTest("Debian's kernel boots to user space on all its processors, and sees the memory that there is", async () => {
  await using linux = await Linux.boot({ vcpus: 2, below: 160 * MIB, above: 96 * MIB });
  const { shell, machine } = linux;
  assertMatch(await shell.output("uname -srm"), /^Linux \d+\.\d+\S*cloud-amd64 x86_64$/);
  assertEquals(await shell.output("grep -c ^processor /proc/cpuinfo"), "2");
  const ram = (await shell.output("grep -E 'System RAM' /proc/iomem")).split("\n");
  // The first page is the kernel's own, and it takes pages away at the end of nothing else.
  assertEquals(ram, [
    "00001000-0009ffff : System RAM",
    "00100000-09ffffff : System RAM",
    "100000000-105ffffff : System RAM",
  ]);
  assertEquals(machine.memory.guest.ramRanges.map(String), [
    "0x0-0xa0000",
    "0x100000-0xa000000",
    "0x100000000-0x106000000",
  ]);

  const end = await linux.powerOff();
  assertEquals([end.why, end.crash], ["off", null]);
  assertEquals(linux.broken, []);
});

linuxTest("Linux cannot write to ROM: what it writes is lost, and what is there stays", async () => {
  await using linux = await Linux.boot();
  const { shell, machine } = linux;
  const before = machine.memory.guest.memory.read(0xc_0000, 16);
  const read = "dd if=/dev/mem bs=16 skip=49152 count=1 2>/dev/null | hexdump -C | head -n 1";
  const seen = await shell.output(read);
  const { lines } = await shell.run("printf XXXX | dd of=/dev/mem bs=16 seek=49152 conv=notrunc; true");
  assert(lines.some((line) => line.includes("records out")), lines.join("\n"));
  assertEquals(await shell.output(read), seen);
  assertEquals(machine.memory.guest.memory.read(0xc_0000, 16), before);
});

linuxTest("a machine that is stopped while Linux works leaves nothing behind", async () => {
  const before = openFds();
  {
    await using linux = await Linux.boot();
    linux.shell.send("while true; do :; done");
  }
  assertEquals(openFds(), before);
});
