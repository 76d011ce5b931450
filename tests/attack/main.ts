/**
 * `deno task attack [SECONDS] [--seed N] [--family NAME]`: children that do what nobody should, for so many seconds. With
 * a family and a seed, that one child again.
 *
 * @module
 */

import { FAMILIES } from "./families/mod.ts";
import { attack, type Result, runChild, table } from "./run.ts";

function option(name: string): string | undefined {
  const at = Deno.args.indexOf(`--${name}`);
  return at === -1 ? undefined : Deno.args[at + 1];
}

function tell({ family, seed, ending, detail }: Result): void {
  if (ending !== "clean") console.log(`\n${ending}: --family ${family} --seed ${seed}\n${detail}`);
}

const only = option("family");
const families = FAMILIES.filter(({ name }) => only === undefined || name === only);
if (families.length === 0) {
  console.error(`There is no family "${only}", only ${FAMILIES.map(({ name }) => name).join(", ")}`);
  Deno.exit(2);
}
const seed = Number(option("seed") ?? crypto.getRandomValues(new Uint32Array(1))[0]);
let results: Result[];
if (only !== undefined && option("seed") !== undefined && families[0] !== undefined) {
  results = [await runChild(families[0], seed)];
  results.forEach(tell);
} else {
  const seconds = /^\d+$/.test(Deno.args[0] ?? "") ? Number(Deno.args[0]) : 60;
  console.log(`Attacking for ${seconds} seconds, seed ${seed}`);
  results = await attack(families, seconds, seed, tell);
}
console.log(`\n${table(results)}`);
Deno.exit(results.every(({ ending }) => ending === "clean") ? 0 : 1);
