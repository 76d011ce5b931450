/**
 * Folders and files that are made once and kept between runs, outside the project.
 *
 * @module
 */

/** Where they are: XDG_CACHE_HOME, or ~/.cache, below it `membacking`. */
export function cacheFolder(): string {
  const home = Deno.env.get("XDG_CACHE_HOME") ?? `${Deno.env.get("HOME") ?? "/tmp"}/.cache`;
  return `${home}/membacking`;
}

/**
 * The path of `name` in the cache, made by `make` if it is not there. What `make` leaves at the path it is given gets
 * its name only when it is whole. Several processes may ask at once: one makes it, and the others wait.
 */
export function cached(name: string, make: (path: string) => void): string {
  const folder = cacheFolder();
  Deno.mkdirSync(folder, { recursive: true });
  const path = `${folder}/${name}`;
  if (exists(path)) return path;
  using lock = Deno.openSync(`${folder}/${name}.lock`, { create: true, write: true });
  lock.lockSync(true);
  if (exists(path)) return path;
  const unfinished = `${path}.unfinished`;
  if (exists(unfinished)) Deno.removeSync(unfinished, { recursive: true });
  make(unfinished);
  Deno.renameSync(unfinished, path);
  return path;
}

/** Whether there is something at `path`. */
export function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}
