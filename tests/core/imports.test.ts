import { assert, assertEquals } from "@std/assert";

/** Rooms of the source tree and the rooms each may import from. Imports point one way. */
const ALLOWED: Record<string, readonly string[]> = {
  "src/core": ["src/core"],
  "src/testing": ["src/testing", "src/core", "src"],
  "ffi": ["ffi", "src/core"],
  "src": ["src", "src/core", "ffi"],
};

const ROOT = new URL("../../", import.meta.url);

/** The TypeScript files below `folder`, as paths from the root of the project. */
function* files(folder: string): Generator<string> {
  for (const entry of Deno.readDirSync(new URL(`${folder}/`, ROOT))) {
    const path = `${folder}/${entry.name}`;
    if (entry.isDirectory) yield* files(path);
    else if (path.endsWith(".ts")) yield path;
  }
}

/** The room a file is in: the longest of the rooms above that holds it. */
function roomOf(path: string): string | undefined {
  return Object.keys(ALLOWED).filter((room) => path.startsWith(`${room}/`)).sort((a, b) => b.length - a.length)[0];
}

/** What a file imports and re-exports, types included: as paths from the root, or bare specifiers. */
function importsOf(path: string): string[] {
  // Doc comments hold examples that import the package by its name; they are not imports of the file.
  const source = Deno.readTextFileSync(new URL(path, ROOT)).replace(/\/\*[\s\S]*?\*\/|^\s*\/\/.*$/gm, "");
  const found = [...source.matchAll(/^(?:import|export)\b(?:[^;]*?\bfrom)?\s*"([^"]+)"|\bimport\(\s*"([^"]+)"/gm)]
    .map(([, declared, dynamic]) => declared ?? dynamic ?? "");
  return found.map((specifier) =>
    specifier.startsWith(".") ? new URL(specifier, new URL(path, ROOT)).href.slice(ROOT.href.length) : specifier
  );
}

Deno.test("imports point one way: core to itself, ffi to core, src to both", () => {
  const wrong: string[] = [];
  let seen = 0;
  for (const path of [...files("src"), ...files("ffi")]) {
    const room = roomOf(path)!;
    for (const imported of importsOf(path)) {
      seen++;
      const target = roomOf(imported);
      if (target === undefined || !ALLOWED[room]!.includes(target)) wrong.push(`${path} imports ${imported}`);
    }
  }
  assert(seen > 10, "no imports were found: the test looks at nothing");
  assertEquals(wrong, []);
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
