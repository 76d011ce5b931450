/**
 * The words of memory that the owner of a region manager and its clients share, by their places in `Int32Array`s.
 *
 * Words that different threads write lie 64 bytes apart, so that no two share a cache line.
 *
 * @module
 */

/** The words that all clients of one manager look at. */
export const GATE = {
  /** Even while the memory map stands still, odd while it changes. Written by the owner. */
  sequence: 0,
  /** 1 once the manager has been disposed; `sequence` stays odd then. Written by the owner. */
  closed: 16,
  /** How many callers wait for locks to be released. Written by the owner. */
  draining: 32,
  /** How many words there are. */
  words: 48,
} as const;

/** How many changed slots of the lock table are noted one by one; more than that, and the owner looks at all. */
export const JOURNAL_LENGTH = 256;

/** The words of one client. */
export const LINE = {
  /** 1 while the client accesses guest memory. Written by the client. */
  reading: 0,
  /** 1 once the owner serves the client no longer. Written by the owner. */
  closed: 16,
  /** How many changes of the lock table have been noted. Written by the client, reset by the owner behind the gate. */
  noted: 32,
  /** One past the highest slot of the lock table that was ever used. Written by the client. */
  slots: 33,
  /** The slots that changed. Written by the client. */
  journal: 34,
  /** How many words there are. */
  words: 34 + JOURNAL_LENGTH,
} as const;

/** The words through which a synchronous client gets its answers; the answer itself follows as JSON. */
export const MAIL = {
  /** Twice the number of the request that is waited for, one more once it has begun, 0 for none. Written by both. */
  request: 0,
  /** The number of the request that was answered last. Written by the owner. */
  answered: 16,
  /** The length of the answer in bytes. Written by the owner. */
  length: 17,
  /** Where the answer begins, in bytes. */
  text: 128,
} as const;

/** How large shared memory that grows may become, in bytes. It costs addresses, not memory. */
export const GROWS_TO = 2 ** 32;

/** Makes shared memory of `bytes` that can grow. */
export function growable(bytes: number, limit: number = GROWS_TO): SharedArrayBuffer {
  return new SharedArrayBuffer(bytes, { maxByteLength: limit });
}
