import { assert, assertEquals } from "@std/assert";

/** The rooms of the source tree, from the ground up. A file imports from its own room and from those before it. */
const ROOMS: readonly string[] = [
  "src/core",
  "src/core/map",
  "src/core/plan",
  "ffi/os",
  "ffi/files",
  "ffi/host",
  "ffi/kvm",
  "src/targets",
  "src/memory",
  "src/requests",
  "src/serving",
  "src/regions",
  "src/snapshots",
  "src/guest",
  "src/clients",
  "src/drawing",
  "src/vhost_user",
  "src/inspector",
  "src/testing",
];

/** What the runtime brings along, for files outside of src/core. */
const BUILT_IN: readonly string[] = ["node:net", "node:timers", "node:zlib"];

const ROOT = new URL("../", import.meta.url);

/** The TypeScript files below `folder`, as paths from the root of the project. */
function* files(folder: string): Generator<string> {
  for (const entry of Deno.readDirSync(new URL(`${folder}/`, ROOT))) {
    const path = `${folder}/${entry.name}`;
    if (entry.isDirectory) yield* files(path);
    else if (path.endsWith(".ts")) yield path;
  }
}

function roomOf(path: string): number {
  return ROOMS.indexOf(path.slice(0, path.lastIndexOf("/")));
}

/** What a file imports and re-exports, types included: as paths from the root, or bare specifiers. */
function importsOf(path: string): string[] {
  // Doc comments hold examples that import the package by its name; they are not imports of the file.
  const source = Deno.readTextFileSync(new URL(path, ROOT)).replace(/\/\*[\s\S]*?\*\/|^\s*\/\/.*$/gm, "")
    // Files that are there as text are data.
    .replace(/^import .* with \{ type: "text" \};$/gm, "");
  const found = [...source.matchAll(/^(?:import|export)\b(?:[^;]*?\bfrom)?\s*"([^"]+)"|\bimport\(\s*"([^"]+)"/gm)]
    .map(([, declared, dynamic]) => declared ?? dynamic ?? "");
  return found.map((specifier) =>
    specifier.startsWith(".") ? new URL(specifier, new URL(path, ROOT)).href.slice(ROOT.href.length) : specifier
  );
}

/** Every file of the package, with what it imports. */
const GRAPH = new Map([...files("src"), ...files("ffi")].map((path) => [path, importsOf(path)]));

Deno.test("every file of the package is in a room", () => {
  assert(GRAPH.size > 50, "hardly any files were found: the test looks at nothing");
  assertEquals([...GRAPH.keys()].filter((path) => roomOf(path) < 0), []);
});

Deno.test("a file imports from its own room and from those below it", () => {
  const wrong: string[] = [];
  for (const [path, imports] of GRAPH) {
    for (const imported of imports) {
      if (!path.startsWith("src/core/") && BUILT_IN.includes(imported)) continue;
      const target = roomOf(imported);
      if (target < 0 || target > roomOf(path)) wrong.push(`${path} imports ${imported}`);
    }
  }
  assertEquals(wrong, []);
});

Deno.test("no file imports itself by way of others, types included", () => {
  const circles: string[] = [];
  const done = new Set<string>();
  const visit = (path: string, way: readonly string[]): void => {
    const at = way.indexOf(path);
    if (at >= 0) return void circles.push([...way.slice(at), path].join(" -> "));
    if (done.has(path)) return;
    for (const imported of GRAPH.get(path) ?? []) visit(imported, [...way, path]);
    done.add(path);
  };
  for (const path of GRAPH.keys()) visit(path, []);
  assertEquals(circles, []);
});

Deno.test("src/core names no Deno API, no clock and no randomness", () => {
  const wrong: string[] = [];
  for (const path of files("src/core")) {
    // Strings are left out: `Symbol.for("Deno.customInspect")` is harmless in any engine.
    const source = Deno.readTextFileSync(new URL(path, ROOT)).replace(/\/\*[\s\S]*?\*\/|\/\/.*$|"[^"\n]*"/gm, "");
    const found = source.match(/\bDeno\.|\bperformance\b|\bDate\b|Math\.random|\bfetch\(|setTimeout/);
    if (found) wrong.push(`${path} uses ${found[0]}`);
  }
  assertEquals(wrong, []);
});
