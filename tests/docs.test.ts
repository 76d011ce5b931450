import { assert, assertEquals, assertRejects } from "@std/assert";
import config from "../deno.json" with { type: "json" };
import { kvmTest } from "./support/require.ts";

const ROOT = new URL("../", import.meta.url);
const README = read("README.md");

function read(path: string): string {
  return Deno.readTextFileSync(new URL(path, ROOT));
}

/** The contents of the fenced blocks of one kind. */
function blocks(markdown: string, kind: string): string[] {
  return [...markdown.matchAll(/^```(.*)\n([\s\S]*?)^```$/gm)].filter(([, info]) => info === kind)
    .map(([, , content]) => content ?? "");
}

/** Whether the host gives memfds huge pages that nobody asked for. */
function hasHugeShmem(): boolean {
  try {
    const setting = Deno.readTextFileSync("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    return /\[(always|within_size|force)\]/.test(setting);
  } catch {
    return false;
  }
}

/** Runs a program from a file or as text, with `--allow-ffi` and `flags` alone. Returns what it printed. */
async function run(program: { file: string; args?: string[]; flags?: string[] } | { text: string }): Promise<string> {
  const { flags = [], file = "-", args = [] } = "file" in program ? program : {};
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-prompt", "--allow-ffi", ...flags, file, ...args],
    cwd: ROOT,
    env: { NO_COLOR: "1" },
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const input = child.stdin.getWriter();
  if ("text" in program) await input.write(new TextEncoder().encode(program.text));
  await input.close();
  const { success, stdout, stderr } = await child.output();
  const printed = new TextDecoder().decode(stdout);
  assert(success, printed + new TextDecoder().decode(stderr));
  return printed;
}

Deno.test("the first example of the README prints its picture, with --allow-ffi alone", async () => {
  const [example = ""] = blocks(README, "ts");
  const [picture = ""] = blocks(README, "text");
  const printed = await run({ text: example });
  // A host that makes huge pages of its own accord takes more than was touched.
  const masked = (text: string) => hasHugeShmem() ? text.replace(/(in use +).*/, "$1") : text;
  assertEquals(masked(printed), masked(picture));
});

Deno.test("the picture of the README is what drawMemoryMapSvg() draws of its first example", async () => {
  const [example = ""] = blocks(README, "ts");
  assert(README.includes("(./docs/memory_map.svg)"), "the README does not show it");
  const printed = await run({ text: example.replaceAll("drawMemoryMap", "drawMemoryMapSvg") });
  const masked = (svg: string) => hasHugeShmem() ? svg.replace(/>[^<]* shared<\/text>/, "") : svg;
  assertEquals(masked(printed.trim()), masked(read("docs/memory_map.svg").trim()));
});

kvmTest("the KVM example of the README runs a guest", async () => {
  const [example = ""] = blocks(README, "ts ignore");
  assertEquals(await run({ text: example }), "The guest read 42\n");
});

kvmTest("the demo shows a guest what it claims, with --allow-ffi alone", async () => {
  const printed = await run({ file: "examples/demo.ts" });
  assert(printed.endsWith(" claims checked, 0 broken.\n"), printed);
  assert(!printed.includes("NO GUEST"), printed);
});

kvmTest("the demo of a PC shows a guest what it claims, with --allow-ffi alone", async () => {
  const printed = await run({ file: "examples/demo.ts", args: ["--map"] });
  assert(printed.endsWith(" claims checked, 0 broken.\n"), printed);
  assert(printed.includes("KVM slots"), printed);
});

for (const args of [[], ["--map"]]) {
  Deno.test(`the demo without KVM says so first: ${["--no-kvm", ...args].join(" ")}`, async () => {
    const printed = await run({ file: "examples/demo.ts", args: ["--no-kvm", ...args] });
    assert(printed.indexOf("NO GUEST RUNS") < printed.indexOf("✓"), printed);
    assert(printed.endsWith("0 broken. NO GUEST RAN, see the top.\n"), printed);
  });
}

Deno.test("the demo refuses an option that it does not know", async () => {
  await assertRejects(() => run({ file: "examples/demo.ts", args: ["--mop"] }), Error, 'no option "--mop"');
});

kvmTest("the threads of the README are those of an example that works", async () => {
  const files = ["main.ts", "vcpu.ts"].map((name) => read(`examples/threads/${name}`));
  const [, ...excerpts] = blocks(README, "ts ignore");
  assertEquals(excerpts.map((excerpt, i) => files[i]?.includes(excerpt)), [true, true]);
  const printed = await run({ file: "examples/threads/main.ts", flags: ["--allow-read=mod.ts,src,ffi,examples"] });
  assertEquals(printed, "The guest wrote 42 to its BAR\n");
});

Deno.test("CI runs the commands of the README", () => {
  const ci = read(".ci/run");
  const commands = blocks(README, "sh").flatMap((block) => block.trim().split("\n"));
  assert(commands.length > 0);
  assertEquals(commands.filter((command) => !ci.includes(command)), []);
});

Deno.test("the documentation names tasks that exist", () => {
  const names = [README, read("CONTRIBUTING.md"), read(".ci/run")]
    .flatMap((text) => [...text.matchAll(/deno@[\d.]+ task (\w+)/g)].map(([, name]) => name ?? ""));
  assert(names.length > 0);
  const tasks = Object.keys(config.tasks);
  assertEquals(names.filter((name) => name !== "X" && !tasks.includes(name)), []);
});

Deno.test("the README maps every export to its file", () => {
  const [json = ""] = blocks(README, "json");
  const exported = Object.entries(config.exports).map(([name, path]) => [
    name.replace(".", "membacking"),
    path.replace(".", "./membacking"),
  ]);
  assertEquals(JSON.parse(json), { imports: Object.fromEntries(exported) });
});
