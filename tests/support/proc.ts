/**
 * What the kernel says about this process. Read through the C library: Deno lets nothing short of `--allow-all` near
 * /proc and /sys.
 *
 * @module
 */

import { cString, libc } from "../../ffi/os/libc.ts";
import { O_CLOEXEC, O_RDONLY } from "../../ffi/os/mman.ts";
import { unwrap } from "../../ffi/os/os_error.ts";

const O_WRONLY = 1;
const F_GETFD = 1;
const HIGHEST_FD = 4096;

/** The text of a file in /proc or /sys. */
export function readProc(path: string): string {
  const { sys, errno } = libc();
  const fd = unwrap(sys.open(cString(path), O_RDONLY | O_CLOEXEC, 0), errno[0], "open", () => path);
  try {
    const decoder = new TextDecoder();
    const buffer = new Uint8Array(1 << 16);
    let text = "";
    while (true) {
      const count = unwrap(sys.read(fd, buffer, BigInt(buffer.length)), errno[0], "read", () => path);
      if (count === 0) return text;
      text += decoder.decode(buffer.subarray(0, count), { stream: true });
    }
  } finally {
    sys.close(fd);
  }
}

/** Writes a file in /proc or /sys. */
export function writeProc(path: string, text: string): void {
  const { sys, errno } = libc();
  const fd = unwrap(sys.open(cString(path), O_WRONLY | O_CLOEXEC, 0), errno[0], "open", () => path);
  try {
    const bytes = new TextEncoder().encode(text);
    unwrap(sys.write(fd, bytes, BigInt(bytes.length)), errno[0], "write", () => path);
  } finally {
    sys.close(fd);
  }
}

/** A kernel mapping (VMA) of this process. */
export interface Vma {
  /** The first address. */
  readonly start: number;
  /** One past the last. */
  readonly end: number;
  /** Such as `rw-s`. */
  readonly access: string;
  /** Where in the file it begins. */
  readonly offset: number;
  /** The file, empty for anonymous memory. */
  readonly file: string;
}

/** All mappings of this process that overlap `[start, end)`. */
export function mappings(start = 0, end = Infinity): Vma[] {
  const vmas: Vma[] = [];
  for (const line of readProc("/proc/self/maps").split("\n")) {
    const match = /^([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) \S+ \d+\s*(.*)$/.exec(line);
    if (match === null) continue;
    const [from = 0, to = 0] = [match[1], match[2]].map((hex) => Number.parseInt(hex ?? "", 16));
    if (from >= end || to <= start) continue;
    vmas.push({
      start: from,
      end: to,
      access: match[3] ?? "",
      offset: Number.parseInt(match[4] ?? "", 16),
      file: match[5] ?? "",
    });
  }
  return vmas;
}

/** The two-letter flags (`VmFlags` of smaps) of the mapping at an address: `lo` locked, `hg` wants huge pages, ... */
export function mappingFlags(address: number): string[] {
  let inside = false;
  for (const line of readProc("/proc/self/smaps").split("\n")) {
    const match = /^([0-9a-f]+)-([0-9a-f]+) /.exec(line);
    if (match !== null) {
      inside = Number.parseInt(match[1] ?? "", 16) <= address && address < Number.parseInt(match[2] ?? "", 16);
    } else if (inside && line.startsWith("VmFlags:")) {
      return line.slice("VmFlags:".length).trim().split(" ");
    }
  }
  return [];
}

/** A number of /proc/self/status, such as `VmLck` in KiB. */
export function status(name: string): number {
  return Number(new RegExp(`^${name}:\\s*(\\d+)`, "m").exec(readProc("/proc/self/status"))?.[1]);
}

/** How long this thread has been on a processor, in milliseconds. */
export function processorTime(): number {
  return Number(readProc("/proc/thread-self/schedstat").split(" ")[0]) / 1e6;
}

/** Whether a file descriptor is open, and if so its descriptor flags (1: close-on-exec). */
export function fdFlags(fd: number): number | undefined {
  const flags = libc().sys.fcntl(fd, F_GETFD, 0);
  return flags === -1 ? undefined : flags;
}

/** How many file descriptors are open. */
export function openFds(): number {
  let count = 0;
  for (let fd = 0; fd < HIGHEST_FD; fd++) if (fdFlags(fd) !== undefined) count++;
  return count;
}

/** What open files are called that a test may leave behind: memory and snapshots, and not what the runtime has for itself. */
const OURS = /memfd:|\/(memory|index)$|\.partial/;

/** The names of the open files that match. */
export function openFiles(which: RegExp = OURS): string[] {
  const names = [...Deno.readDirSync("/proc/self/fd")].map(({ name }) => {
    try {
      return Deno.readLinkSync(`/proc/self/fd/${name}`);
    } catch {
      return ""; // the directory that was just read
    }
  });
  return names.filter((name) => which.test(name)).sort();
}
