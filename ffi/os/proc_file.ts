/**
 * Small files of /proc and /sys, read through the C library, so that no `--allow-read` is needed.
 *
 * Why it is safe: it opens, reads into its own buffer and closes.
 *
 * @module
 */

import { cString, libc } from "./libc.ts";
import { O_CLOEXEC, O_RDONLY } from "./mman.ts";
import { outcome, uninterrupted } from "./uninterrupted.ts";

const CHUNK = 1 << 16;

/** Hands the file to `use` in pieces. The piece is only valid during the call. */
function readPieces(path: string, use: (piece: Uint8Array) => void): void {
  const { sys, errno } = libc();
  const cPath = cString(path);
  const fd = uninterrupted("open", () => outcome(sys.open(cPath, O_RDONLY | O_CLOEXEC, 0), errno[0]), () => path);
  try {
    const buffer = new Uint8Array(CHUNK);
    const size = BigInt(CHUNK);
    while (true) {
      // SAFETY: the kernel writes at most CHUNK bytes, the length of the buffer.
      const count = uninterrupted("read", () => outcome(sys.read(fd, buffer, size), errno[0]), () => path);
      if (count === 0) return;
      use(buffer.subarray(0, count));
    }
  } finally {
    sys.close(fd);
  }
}

/** The text of a file, or `undefined` where it cannot be read. */
export function readTextFile(path: string): string | undefined {
  const decoder = new TextDecoder();
  let text = "";
  try {
    readPieces(path, (piece) => text += decoder.decode(piece, { stream: true }));
  } catch {
    return undefined;
  }
  return text + decoder.decode();
}

/**
 * The whole number a file holds, or `undefined` where the file is missing or holds something else.
 */
export function readNumberFile(path: string): number | undefined {
  const text = readTextFile(path);
  return text !== undefined && /^\d+\s*$/.test(text) ? Number.parseInt(text, 10) : undefined;
}

/** Hands each line of a file to `use`, without its line feed. Returns whether the file could be read. */
export function eachLine(path: string, use: (line: string) => void): boolean {
  const decoder = new TextDecoder();
  let rest = "";
  try {
    readPieces(path, (piece) => {
      const lines = (rest + decoder.decode(piece, { stream: true })).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) use(line);
    });
  } catch {
    return false;
  }
  if (rest !== "") use(rest);
  return true;
}

/**
 * How many lines a file has, or `undefined` where it cannot be read.
 */
export function countLines(path: string): number | undefined {
  let lines = 0;
  try {
    readPieces(path, (piece) => {
      for (let at = piece.indexOf(10); at !== -1; at = piece.indexOf(10, at + 1)) lines++;
    });
  } catch {
    return undefined;
  }
  return lines;
}
