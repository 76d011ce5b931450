import { assert, assertEquals, assertMatch, assertStringIncludes, assertThrows } from "@std/assert";
import { Mappable, MemoryRange, OsError } from "membacking";
import config from "../../deno.json" with { type: "json" };
import { Machine, type MachineEvents } from "../../examples/firmware/machine.ts";
import { kvmTest } from "../support/require.ts";

const ROOT = new URL("../../", import.meta.url);
const FLAGS = config.tasks.firmware.command.match(/--\S+/g) ?? [];
const MAIN = "examples/firmware/main.ts";

/** Runs the program as the task does, but without a shell. */
async function run(...args: string[]): Promise<{ code: number; out: string; error: string }> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-prompt", "--quiet", ...FLAGS, MAIN, ...args],
    cwd: ROOT,
    env: { NO_COLOR: "1" },
  }).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, out: text(stdout), error: text(stderr) };
}

/** A ROM of 128 KiB whose first instruction is given. */
function romFile(...code: number[]): Disposable & { readonly path: string } {
  const rom = new Uint8Array(0x2_0000).fill(0x90);
  rom.set(code, rom.length - 0x10);
  const path = Deno.makeTempFileSync({ suffix: ".rom" });
  Deno.writeFileSync(path, rom);
  return { path, [Symbol.dispose]: () => Deno.removeSync(path) };
}

Deno.test("the task asks for FFI, for reading the modules of its Worker, for --inspect on this host, and for nothing else", () => {
  assertEquals(FLAGS, [
    "--allow-ffi",
    "--allow-net=127.0.0.1",
    "--allow-read=mod.ts,src,ffi,examples/firmware,examples/pc",
  ]);
});

Deno.test("a firmware file that is missing is named, with the package that has it", async () => {
  const { code, error } = await run("--firmware", "/nonexistent/bios.bin");
  assertEquals(code, 1);
  assertEquals(
    error,
    'Cannot open the firmware "/nonexistent/bios.bin" (ENOENT): install the package that has it with "apt-get install ' +
      'seabios", or name another file with --firmware FILE\n',
  );
});

Deno.test("a firmware file that is no ROM is refused", async () => {
  const { code, error } = await run("--firmware", "mod.ts");
  assertEquals(code, 1);
  assertMatch(error, /^The firmware "mod\.ts" has \d+ bytes, which is no ROM of a PC: .*\n$/);
});

Deno.test("a floppy of the wrong size is refused", async () => {
  const { code, error } = await run("--floppy", "mod.ts");
  assertEquals(code, 1);
  assertMatch(error, /^A floppy image has 163840 bytes \(160 KiB\), and this one has \d+; .*\n$/);
});

Deno.test("a floppy that is missing is named", async () => {
  const { code, error } = await run("--floppy", "/nonexistent.img");
  assertEquals(code, 1);
  assertEquals(error, 'open failed with ENOENT (no such file or directory): "/nonexistent.img"\n');
});

Deno.test("an argument that makes no sense is answered by those that do", async () => {
  const { code, error } = await run("--flopy");
  assertEquals(code, 1);
  assertMatch(error, /^Cannot make sense of "--flopy"\nUsage: deno task firmware .*\n$/);
});

Deno.test("a machine without KVM is an error that says what to do", () => {
  using rom = romFile(0xf4);
  const error = assertThrows(() => new Machine({ firmware: rom.path, kvm: "/nonexistent", events: NOTHING }), OsError);
  assertEquals(error.code, "ENOENT");
  assertStringIncludes(error.message, "there is no such device, KVM is usually /dev/kvm");
});

kvmTest("a guest that crashes leaves its registers, its last exit and the memory map", async () => {
  using rom = romFile(0xb8, 0x34, 0x12, 0xea, 0x00, 0x00, 0x00, 0xa0); // mov ax, 0x1234; jmp 0xa000:0, where nothing is
  const { code, out } = await run("--firmware", rom.path);
  assertEquals(code, 1);
  assertMatch(out, /^The guest cannot go on: (internal-error|shutdown)/m);
  assertMatch(out, /rax +0x1234 /);
  assertMatch(out, /cs 0xa000 at 0xa0000/);
  assertMatch(out, /^ +0 VGA window/m);
  assertMatch(out, /^Crashed after .* 4 slot ioctls, 0 of them deletes$/m);
});

kvmTest("a guest that never comes to an end can be stopped", async () => {
  using rom = romFile(0xeb, 0xfe); // jmp to itself
  using machine = new Machine({ firmware: rom.path, events: NOTHING });
  const { why } = await machine.boot(AbortSignal.timeout(300));
  assertEquals(why, "kicked");
});

kvmTest("memory that the guest runs from can be exchanged for other memory, with another slot", async () => {
  // jmp 0xf000:0xfff5; jmp to itself
  const code = [0xea, 0xf5, 0xff, 0x00, 0xf0, 0xeb, 0xfe];
  using rom = romFile(...code);
  using machine = new Machine({ firmware: rom.path, events: NOTHING });
  const done = new AbortController();
  const end = machine.boot(done.signal);
  await settled();
  const { regions } = machine.memory.guest;
  using copy = Mappable.memfd("copy", 0x1000);
  copy.write(0xff0, Uint8Array.from(code));
  const range = new MemoryRange(0xf_f000, 0x10_0000);
  using cover = regions.newRegion({ name: "cover", range, priority: 9 });
  cover.addMapping({ rangeInRegion: MemoryRange.of(0, 0x1000), mappable: copy });
  for (let i = 0; i < 20; i++) {
    // The slot of the ROM goes, writable memory comes, and back. Without `quiesce` the guest would not survive it.
    cover.map();
    await new Promise((resolve) => setTimeout(resolve, 5));
    cover.unmap();
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  done.abort();
  assertEquals((await end).why, "kicked");
});

kvmTest("machines leave nothing behind", async () => {
  using rom = romFile(0xea, 0x00, 0x00, 0x00, 0xa0);
  const openFiles = () => [...Deno.readDirSync("/proc/self/fd")].length;
  const once = async () => {
    using machine = new Machine({ firmware: rom.path, events: NOTHING });
    assertEquals((await machine.boot()).why, "crash");
  };
  await once(); // what the first Worker leaves in the runtime
  await settled();
  const before = openFiles();
  for (let i = 0; i < 3; i++) await once();
  await settled();
  assert(openFiles() <= before, `${openFiles()} open files after, ${before} before`);
  assert(!Deno.readTextFileSync("/proc/self/maps").includes(rom.path), "the ROM is still mapped");
});

const NOTHING: MachineEvents = { onLog() {}, onFinding() {}, onChange() {}, onRefused() {} };

/** Workers end a moment after they were told to. */
function settled(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 200));
}
