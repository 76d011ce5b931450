/**
 * The bytes an array really has.
 *
 * Why it is safe: what is passed to the kernel as a pointer and a length must agree, and a subclass of `Uint8Array` may
 * say what it likes about its length. The language's own getters cannot be overridden.
 *
 * @module
 */

const prototype: object = Object.getPrototypeOf(Uint8Array.prototype);

function getter(name: "buffer" | "byteOffset" | "length"): (this: Uint8Array | Uint32Array) => unknown {
  const get = Object.getOwnPropertyDescriptor(prototype, name)?.get;
  if (get === undefined) throw new Error(`Typed arrays have no ${name}`);
  return get;
}

const [getBuffer, getOffset, getLength] = [getter("buffer"), getter("byteOffset"), getter("length")];

/**
 * How many bytes `bytes` really has.
 *
 * @throws {TypeError} If it is no Uint8Array.
 */
export function lengthOf(bytes: Uint8Array): number {
  if (!(bytes instanceof Uint8Array)) throw new TypeError("The bytes must be a Uint8Array");
  return getLength.call(bytes) as number;
}

/**
 * A plain array on the same bytes as `bytes`.
 *
 * @throws {TypeError} If it is no Uint8Array.
 */
export function plainBytes(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  const length = lengthOf(bytes);
  // Deno's types leave shared memory out of what a call may be given; the calls take it all the same.
  return new Uint8Array(getBuffer.call(bytes) as ArrayBuffer, getOffset.call(bytes) as number, length);
}

/** A plain array on the same words as `words`; `null` where that is no Uint32Array, or has lost its memory. */
export function plainWords(words: unknown): Uint32Array | null {
  if (!(words instanceof Uint32Array)) return null;
  const buffer = getBuffer.call(words) as ArrayBuffer;
  if (buffer.detached) return null;
  return new Uint32Array(buffer, getOffset.call(words) as number, getLength.call(words) as number);
}
