import { assert, assertEquals } from "@std/assert";
import config from "../deno.json" with { type: "json" };

const ROOT = new URL("../", import.meta.url);

function source(path: string): string {
  return Deno.readTextFileSync(new URL(path, ROOT)).replace(/\/\*[\s\S]*?\*\/|^\s*\/\/.*$/gm, "");
}

function importsOf(path: string): string[] {
  return [...source(path).matchAll(/(?:\bfrom|\bimport)\s*\(?\s*["']([^"']+)["']/g)].map(([, specifier]) =>
    specifier ?? ""
  );
}

function* typescriptFiles(folder: string): Generator<string> {
  for (const entry of Deno.readDirSync(new URL(folder, ROOT))) {
    if (entry.isDirectory) yield* typescriptFiles(`${folder}${entry.name}/`);
    else if (entry.name.endsWith(".ts")) yield `${folder}${entry.name}`;
  }
}

Deno.test("mod.ts re-exports from src/ and ffi/ by name and does nothing else", () => {
  const rest = source("mod.ts").replaceAll(/export (?:type )?\{[^}]*\} from "\.\/(?:src|ffi)\/[^"]+";/g, "");
  assertEquals(rest.trim(), "");
});

/** Whether it is of Node's library, or a package of npm that deno.json names. */
function isForeign(specifier: string): boolean {
  const imports: Readonly<Record<string, string>> = config.imports;
  return specifier.startsWith("node:") || (imports[specifier]?.startsWith("npm:") ?? false);
}

Deno.test("examples import the package by its public names", () => {
  const names = Object.keys(config.exports).map((name) => name.replace(".", "membacking"));
  const wrong: string[] = [];
  let seen = 0;
  for (const path of typescriptFiles("examples/")) {
    for (const specifier of importsOf(path)) {
      seen++;
      const isOwn = specifier.startsWith(".") &&
        new URL(specifier, new URL(path, ROOT)).href.startsWith(`${ROOT}examples/`);
      if (!isOwn && !names.includes(specifier) && !isForeign(specifier)) wrong.push(`${path} imports ${specifier}`);
    }
  }
  assert(seen > 0, "no imports were found: the test looks at nothing");
  assertEquals(wrong, []);
});

for (const [name, path] of Object.entries(config.exports)) {
  Deno.test(`importing ${name.replace(".", "membacking")} needs no permission`, () => {
    const { success, stderr } = new Deno.Command(Deno.execPath(), {
      args: ["run", "--no-prompt", path],
      cwd: ROOT,
    }).outputSync();
    assert(success, new TextDecoder().decode(stderr));
  });
}

Deno.test("what is published is below 700 KiB to download", async () => {
  const paths: string[] = ["deno.json"];
  const list = (path: string) => {
    if (!Deno.statSync(new URL(path, ROOT)).isDirectory) return void paths.push(path);
    for (const { name } of Deno.readDirSync(new URL(`${path}/`, ROOT))) list(`${path}/${name}`);
  };
  for (const path of config.publish.include) list(path);
  assert(paths.length > 200, `${paths.length} files`);
  // What a registry makes of it is a tar, compressed; its headers are a few names each.
  const all = new Blob(paths.sort().flatMap((path) => [`${path}\n`, Deno.readFileSync(new URL(path, ROOT))]));
  const packed = await new Response(all.stream().pipeThrough(new CompressionStream("gzip"))).arrayBuffer();
  assert(packed.byteLength < 700 * 1024, `${packed.byteLength} bytes, ${all.size} unpacked`);
});
