import { assert, assertEquals } from "@std/assert";
import config from "../deno.json" with { type: "json" };
import * as membacking from "membacking";

const ROOT = new URL("../", import.meta.url);

/** What is documented under an export, as the documentation tool sees it. */
function documentationOf(path: string): unknown {
  const { success, stdout } = new Deno.Command(Deno.execPath(), { args: ["doc", "--json", path], cwd: ROOT })
    .outputSync();
  assert(success);
  return JSON.parse(new TextDecoder().decode(stdout));
}

/** The names of everything below `node` that is marked as internal. */
function* internals(node: unknown, name = ""): Generator<string> {
  if (typeof node !== "object" || node === null) return;
  const own = "name" in node && typeof node.name === "string" ? `${name}.${node.name}` : name;
  if ("kind" in node && node.kind === "internal") yield own;
  for (const value of Object.values(node)) yield* internals(value, own);
}

for (const [name, path] of Object.entries(config.exports)) {
  Deno.test(`nothing that is internal can be reached from ${name.replace(".", "membacking")}`, () => {
    assertEquals([...internals(documentationOf(path))], []);
  });
}

/** The names of what an object of a class can do. */
function membersOf(constructor: { prototype: object }): string[] {
  return Object.getOwnPropertyNames(constructor.prototype).filter((name) => name !== "constructor").sort();
}

Deno.test("a reservation can be looked at and given up by its holder, and nothing else", () => {
  const { VaMapper, RegionManager, Mappable } = membacking;
  assertEquals(membersOf(VaMapper), ["base", "disposed", "length"]);
  assertEquals(membersOf(Mappable), ["clone", "fd", "pageSize", "read", "size", "writable", "write"]);
  using va = VaMapper.reserve(0x10_0000);
  using regions = new RegionManager(va);
  const unsafe = ["map", "remove", "protect", "view", "advise", "park", "restore", "discard", "lockPages"];
  for (const name of unsafe) assert(!(name in va), name);
  assert(!("pieces" in regions) && !("watch" in regions) && !("invalidate" in regions.memory));
});
