/**
 * What `--inspect` does for a program that is over in a moment: it waits for a page before it begins, and for Ctrl-C
 * before it ends.
 *
 * @module
 */

import type { GuestMemoryManager, RegionManager } from "membacking";
import { type Inspector, serveInspector } from "membacking/inspector";

/** The option. */
export const INSPECT = "--inspect";

/** Serves a page that shows the memory of `guest`, and waits until somebody has opened it. */
export async function inspect(
  guest: GuestMemoryManager | RegionManager,
  title: string,
  say: (line: string) => void = console.log,
): Promise<Inspector> {
  const inspector = serveInspector(guest, { title, since: "start" });
  say(`Open ${inspector.url} in a browser: it begins as soon as the page is there`);
  await inspector.opened;
  return inspector;
}

/** Keeps the page up until somebody presses Ctrl-C. */
export async function linger(say: (line: string) => void = console.log): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  Deno.addSignalListener("SIGINT", resolve);
  say("The page stays until you press Ctrl-C: the past is still there");
  await promise;
  Deno.removeSignalListener("SIGINT", resolve);
}
