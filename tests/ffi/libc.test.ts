import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { cString } from "../../ffi/os/libc.ts";

async function run(code: string, ...flags: string[]): Promise<{ success: boolean; stdout: string; stderr: string }> {
  const path = Deno.makeTempFileSync({ suffix: ".ts" });
  try {
    Deno.writeTextFileSync(path, code);
    const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "--no-check", "--no-prompt", ...flags, path],
      env: { NO_COLOR: "1" },
    }).output();
    const decoder = new TextDecoder();
    return { success, stdout: decoder.decode(stdout), stderr: decoder.decode(stderr) };
  } finally {
    Deno.removeSync(path);
  }
}

const mappable = JSON.stringify(new URL("../../ffi/files/mappable.ts", import.meta.url).href);
const kvm = JSON.stringify(new URL("../../ffi/kvm/mod.ts", import.meta.url).href);

Deno.test("importing needs no permission, and the first use says which one is missing", async () => {
  const { success, stdout } = await run(`
    import { Mappable } from ${mappable};
    import { Kvm } from ${kvm};
    for (const use of [() => Mappable.memfd("ram", 4096), () => Kvm.open()]) {
      try { use(); } catch (error) { console.log(error.name, error.message, error.cause.name); }
    }
  `);
  assertEquals(success, true);
  const line =
    "MembackingError Cannot open libc.so.6: run Deno with --allow-ffi (no other permission is needed) NotCapable";
  assertEquals(stdout.trim().split("\n"), [line, line]);
});

Deno.test("nothing but --allow-ffi is needed for files and memory", async () => {
  const { stdout, stderr } = await run(
    `
    import { Mappable } from ${mappable};
    using memory = Mappable.memfd("ram", 4096);
    using file = Mappable.open("/etc/passwd");
    console.log(memory.size, file.size > 0);
  `,
    "--allow-ffi",
  );
  assertEquals(stdout.trim(), "4096 true", stderr);
});

Deno.test("a Worker opens the C library on its own", async () => {
  const { stdout, stderr } = await run(
    `
    import { Mappable } from ${mappable};
    if (globalThis.WorkerGlobalScope) {
      using memory = Mappable.memfd("ram", 4096);
      let code = "";
      try { Mappable.open("/nowhere"); } catch (error) { code = error.code; }
      postMessage([memory.size, code]);
    } else {
      using memory = Mappable.memfd("ram", 4096);
      const worker = new Worker(import.meta.url, { type: "module" });
      worker.onmessage = ({ data }) => { console.log(...data); worker.terminate(); };
    }
  `,
    "--allow-ffi",
    "--allow-read",
  );
  assertEquals(stdout.trim(), "4096 ENOENT", stderr);
});

Deno.test("a C string ends with NUL and may not contain one", () => {
  assertEquals(cString("aé"), new Uint8Array([97, 0xc3, 0xa9, 0]));
  assertStringIncludes(assertThrows(() => cString("a\0"), TypeError).message, "NUL");
  assertThrows(() => cString(undefined as unknown as string), TypeError);
});
