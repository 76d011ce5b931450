/**
 * What this process holds of the kernel's, by /proc.
 *
 * @module
 */

import { mappings, type Vma } from "../support/proc.ts";

/** What a leak would show in. */
export interface Resources {
  /** What the descriptors are of, those of the runtime left out. */
  readonly descriptors: readonly string[];
  /** What is mapped of memfds and vCPUs, and the reservations. */
  readonly mapped: readonly string[];
}

/** Our reservations are multiples of it; the runtime's hardly ever. */
const RESERVED = 2 ** 21;
/** What malloc has for one thread begins at a multiple of it, and is as long: used ahead, inaccessible behind. */
const ARENA = 2 ** 26;
/** Sockets are left out: the runtime itself now and then leaves one of a Worker that was terminated. */
const OURS = /memfd:|kvm|eventfd|eventpoll|pipe:/;

/** What there is now. */
export function resources(): Resources {
  const descriptors: string[] = [];
  for (const { name } of Deno.readDirSync("/proc/self/fd")) {
    try {
      const target = Deno.readLinkSync(`/proc/self/fd/${name}`);
      if (OURS.test(target)) descriptors.push(target.replace(/\d{3,}/, "N"));
    } catch {
      // Closed meanwhile: the descriptor of the directory itself.
    }
  }
  const mapped = mappings();
  const files = mapped.filter(({ file }) => /memfd:|kvm/.test(file)).map(({ file }) => file);
  const reserved = reservations(mapped).map(({ start, end }) => `a reservation of 0x${(end - start).toString(16)}`);
  return { descriptors: descriptors.sort(), mapped: [...files, ...reserved].sort() };
}

/** Which of a process's mappings, in order, are such as a `VaMapper` makes. */
export function reservations(mapped: readonly Vma[]): Vma[] {
  return mapped.filter(({ file, access, end, start }, i) => {
    if (file !== "" || !access.startsWith("---")) return false;
    if (end - start < 2 ** 23 || (end - start) % RESERVED !== 0) return false;
    const ahead = mapped[i - 1];
    const ofMalloc = ahead?.end === start && ahead.start % ARENA === 0 && end === ahead.start + ARENA &&
      ahead.file === "" && ahead.access === "rw-p";
    return !ofMalloc;
  });
}

/** The same once the runtime has what it makes at the first use of a timer, a Worker and a port. */
export async function baseline(): Promise<Resources> {
  const worker = new Worker("data:application/javascript,postMessage(0)", { type: "module" });
  await new Promise((resolve) => worker.onmessage = resolve);
  worker.terminate();
  await new Promise((resolve) => setTimeout(resolve, 50));
  return resources();
}

/** What there is now and was not there before. */
export function leaked(before: Resources, now: Resources): string[] {
  const more = (was: readonly string[], is: readonly string[], how: string) => {
    const left = [...was];
    return is.filter((one) => {
      const at = left.indexOf(one);
      if (at !== -1) left.splice(at, 1);
      return at === -1;
    }).map((one) => `${one} is still ${how}`);
  };
  return [
    ...more(before.descriptors, now.descriptors, "open"),
    ...more(before.mapped, now.mapped, "mapped"),
  ];
}

/** Waits until nothing is left, for as long as a runtime needs to end a thread; what is left then. */
export async function leakedAtLast(before: Resources, patience = 3000): Promise<string[]> {
  for (const until = performance.now() + patience;;) {
    const left = leaked(before, resources());
    if (left.length === 0 || performance.now() > until) return left;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
