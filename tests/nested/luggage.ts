/**
 * What belongs to one command in the machine: the project as it is now, what Deno has compiled of it, and whatever else
 * is to come along.
 *
 * @module
 */

import type { CpioWriter } from "../../examples/debian/cpio.ts";
import { dirname } from "node:path";
import { cacheFolder, exists } from "../../examples/debian/cache.ts";
import { run } from "../../examples/debian/run.ts";

/** Folders of a project that no command needs. */
const LEFT_OUT: ReadonlySet<string> = new Set([".git", "node_modules", "coverage", "out"]);

/** What of Deno's cache saves work: packages, and what it knows of modules. */
const CACHES = ["npm", "dep_analysis_cache_v2", "node_analysis_cache_v2"] as const;

/** Adds `command`, to be run in `folder`, which keeps its path, so that what Deno has compiled is found. */
export function addCommand(cpio: CpioWriter, folder: string, command: string, others: readonly string[]): void {
  cpio.file("command/folder", folder);
  cpio.file("command/cache", dirname(cacheFolder()));
  cpio.file("command/script", command);
  const sources: string[] = [];
  addTree(cpio, folder, folder, sources);
  for (const other of others) addTree(cpio, Deno.realPathSync(other), Deno.realPathSync(other), []);
  compile(sources);
  const { denoDir } = JSON.parse(run(Deno.execPath(), ["info", "--json"])) as { denoDir: string };
  for (const cache of [...CACHES, `gen/file${folder}`]) {
    if (exists(`${denoDir}/${cache}`)) addTree(cpio, `${denoDir}/${cache}`, `/deno_dir/${cache}`, []);
  }
}

/** Here, where it takes a second. What has been compiled is not compiled again; what cannot be will say so where it is used. */
function compile(sources: readonly string[]): void {
  new Deno.Command(Deno.execPath(), { args: ["cache", "--no-check", "--quiet", ...sources], stderr: "null" })
    .outputSync();
}

function addTree(cpio: CpioWriter, from: string, to: string, sources: string[]): void {
  const { isDirectory, isSymlink, mode } = Deno.lstatSync(from);
  if (isSymlink) return cpio.link(to, Deno.readLinkSync(from));
  if (!isDirectory) {
    if (/(?<!\.d)\.ts$/.test(from)) sources.push(from);
    return cpio.file(to, Deno.readFileSync(from), (mode ?? 0o644) & 0o777);
  }
  cpio.directory(to);
  for (const { name } of Deno.readDirSync(from)) {
    if (!LEFT_OUT.has(name)) addTree(cpio, `${from}/${name}`, `${to}/${name}`, sources);
  }
}
