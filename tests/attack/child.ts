/**
 * One attack, in a process of its own: `child.ts FAMILY SEED`. The last line it prints is its report.
 *
 * @module
 */

import { Notes } from "./family.ts";
import { FAMILIES } from "./families/mod.ts";
import { Random } from "./random.ts";

const [name, seed] = Deno.args;
const family = FAMILIES.find((one) => one.name === name);
if (family === undefined) throw new Error(`There is no family ${name}`);
const notes = new Notes();
globalThis.addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  notes.broken(`a rejection that nobody handles: ${event.reason instanceof Error ? event.reason.stack : event.reason}`);
});
globalThis.addEventListener("error", (event) => {
  event.preventDefault();
  notes.broken(`an exception that nobody catches: ${event.error?.stack ?? event.message}`);
});
try {
  await family.attack(new Random(Number(seed)), notes);
} catch (error) {
  notes.broken(`what should always work threw ${error instanceof Error ? Deno.inspect(error, { depth: 6 }) : error}`);
}
// Whatever was left undone has its turn, and may still complain.
await new Promise((resolve) => setTimeout(resolve, 0));
console.log(JSON.stringify(notes.report));
// What is still awaited, on purpose, does not keep it.
Deno.exit(0);
