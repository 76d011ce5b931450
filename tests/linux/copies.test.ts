import { assertEquals } from "@std/assert";
import { createHash } from "node:crypto";
import { encodeState } from "membacking/kvm";
import { Linux, linuxTest } from "./rig.ts";

const CLONES = 10;

/** Something to compute, and what it comes to. */
function sum(number: number): { command: string; result: string } {
  const numbers = Array.from({ length: 100 * number }, (_, i) => `${i + 1}\n`).join("");
  return {
    command: `seq 1 ${100 * number} | md5sum`,
    result: `${createHash("md5").update(numbers).digest("hex")}  -`,
  };
}

linuxTest(`a Linux that is frozen goes on, and so do ${CLONES} clones of it, each in its own way`, async () => {
  await using linux = await Linux.boot();
  await linux.shell.output("echo common >/tmp/file");
  const state = await linux.stop();
  const { guest } = linux.machine.memory;
  using template = guest.freeze();
  linux.goOn();
  const number = async ({ shell }: Linux, number: number) => {
    await shell.output(`echo ${number} >>/tmp/file`);
    return [await shell.output(sum(number + 1).command), await shell.output("cat /tmp/file")];
  };
  // Two at a time: a machine that is emulated in software has one processor for all of them.
  for (let i = 1; i < CLONES; i += 2) {
    await using stack = new AsyncDisposableStack();
    const clones = [i, i + 1].map(() =>
      stack.use(Linux.resume({ ram: (quiesce) => template.clone({ quiesce }), state }))
    );
    const results = await Promise.all(clones.map((clone, k) => number(clone, i + k)));
    assertEquals(results, [i, i + 1].map((own) => [sum(own + 1).result, `common\n${own}`]));
    for (const clone of clones) assertEquals((await clone.powerOff()).why, "off");
  }
  assertEquals(await number(linux, 0), [sum(1).result, "common\n0"]);
  assertEquals((await linux.powerOff()).why, "off");
});

linuxTest("a snapshot of Linux goes on in another process", async () => {
  const folder = Deno.makeTempDirSync();
  {
    await using linux = await Linux.boot();
    await linux.shell.output("echo before >/tmp/file");
    const { vm, vcpus, uart } = await linux.stop();
    const state = {
      vm: encodeState(vm),
      uart: new TextEncoder().encode(
        JSON.stringify({ ...uart, registers: [...uart.registers], input: [...uart.input] }),
      ),
      ...Object.fromEntries(vcpus.map((vcpu, i) => [`vcpu ${i}`, encodeState(vcpu)])),
    };
    using _snapshot = await linux.machine.memory.guest.save(`${folder}/snapshot`, { state });
  }
  const { command, result } = sum(50);
  const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "-A",
      "--no-check",
      "tests/linux/children/resume.ts",
      `${folder}/snapshot`,
      `cat /tmp/file; ${command}`,
    ],
    cwd: new URL("../../", import.meta.url),
  }).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  assertEquals([success, text(stdout)], [true, `before\n${result}\n`], text(stderr));
  Deno.removeSync(folder, { recursive: true });
});
