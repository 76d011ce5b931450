/**
 * Four bytes as four letters, so that a person can follow them.
 *
 * @module
 */

/** Letters as bytes. */
export function toWord(letters: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(letters);
}

/** Four bytes as letters, in quotes. */
export function fromWord(bytes: Uint8Array): string {
  return JSON.stringify(new TextDecoder("latin1").decode(bytes));
}
