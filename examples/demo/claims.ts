/**
 * What the demo claims about a guest and its memory.
 *
 * @module
 */

import type { Mappable } from "membacking";
import type { Guest } from "./guest.ts";
import { claim } from "./stage.ts";
import { fromWord, toWord } from "./word.ts";

/** The guest loads `word`. */
export function loads(guest: Guest, gpa: number, word: string, after?: string): void {
  claim(`${after ? `${after}, then ` : ""}${guest.who} loads ${hex(gpa)}`, guest.load(gpa), fromWord(toWord(word)));
}

/** The guest stores `word`, and that is its fate. */
export function stores(guest: Guest, gpa: number, word: string, fate: string, after?: string): void {
  const what = `${after ? `${after}, then ` : ""}${guest.who} stores "${word}" at ${hex(gpa)}`;
  claim(what, guest.store(gpa, word), fate);
}

/** The file holds `word`. */
export function holds(file: Mappable, offset: number, word: string): void {
  const bytes = new Uint8Array(4);
  file.read(offset, bytes);
  claim(`the file behind it, at ${hex(offset)}`, fromWord(bytes), fromWord(toWord(word)));
}

/** The error that a request is expected to fail with; others go on their way. */
export function caught<E extends Error>(
  kind: abstract new (...args: never[]) => E,
  request: () => void,
): E | undefined {
  try {
    request();
  } catch (error) {
    if (error instanceof kind) return error;
    throw error;
  }
  return undefined;
}

function hex(address: number): string {
  return `0x${address.toString(16)}`;
}
