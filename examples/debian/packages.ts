/**
 * Packages of Debian that are only downloaded and unpacked into a folder: nothing is installed, and nothing but that
 * folder changes.
 *
 * @module
 */

import { PackageError, run } from "./run.ts";

/** The name of the package with the cloud kernel that this Debian has now. */
export function cloudKernelPackage(): string {
  const meta = "linux-image-cloud-amd64";
  const depends = run("apt-cache", ["depends", meta]);
  const name = depends.match(/^\s*Depends: (linux-image-\S+)$/m)?.[1];
  if (name === undefined) throw new PackageError(`apt knows no "${meta}": run "apt-get update" on a Debian of amd64`);
  return name;
}

/** `names` and whatever else they need that this machine has not installed. */
export function withMissingDependencies(names: readonly string[]): string[] {
  const options = ["-o", "Debug::NoLocking=true", "--no-install-recommends", "--print-uris", "-y"];
  const lines = run("apt-get", ["install", ...options, ...names]);
  const missing = [...lines.matchAll(/^'[^']*' ([^_\s]+)_/gm)].map(([, name]) => name ?? "");
  return [...new Set([...names, ...missing])];
}

/** Renews apt's lists, which takes root. A machine whose lists are good enough can do without. */
export function updateLists(): void {
  try {
    run("apt-get", ["update", "-q"]);
  } catch (error) {
    if (!(error instanceof PackageError)) throw error;
    console.error(`Going on with the package lists there are: ${error.message}`);
  }
}

/** Downloads packages and unpacks all of them into `folder`, which is made. */
export function unpackPackages(names: readonly string[], folder: string): void {
  const downloads = Deno.makeTempDirSync({ prefix: "packages-" });
  try {
    run("apt-get", ["-o", "APT::Sandbox::User=root", "download", "-q", ...names], { cwd: downloads });
    Deno.mkdirSync(folder, { recursive: true });
    const files = [...Deno.readDirSync(downloads)].map(({ name }) => name).filter((name) => name.endsWith(".deb"));
    if (files.length < names.length) {
      throw new PackageError(`apt downloaded ${files.length} of ${names.length} packages: ${names.join(" ")}`);
    }
    for (const file of files) run("dpkg-deb", ["-x", `${downloads}/${file}`, folder]);
  } finally {
    Deno.removeSync(downloads, { recursive: true });
  }
}

/** The one file below `folder` whose name fits, or an error that says what is missing. */
export function findFile(folder: string, name: RegExp): string {
  const found = findFiles(folder, name)[0];
  if (found === undefined) {
    throw new PackageError(`There is no file ${name} in ${folder}: delete that folder, try again`);
  }
  return found;
}

function findFiles(folder: string, name: RegExp): string[] {
  const found: string[] = [];
  for (const entry of Deno.readDirSync(folder)) {
    const path = `${folder}/${entry.name}`;
    if (entry.isDirectory) found.push(...findFiles(path, name));
    else if (name.test(entry.name)) found.push(path);
  }
  return found.sort();
}
