/**
 * The words of memory that the owner of a region manager and one client share, by their places in `Int32Array`s.
 *
 * Words that different sides write lie 64 bytes apart, so that no two share a cache line. Each side keeps what it has
 * written to itself and takes the other's words for input: a word may have any value at any time.
 *
 * @module
 */

/** How many changed slots of the lock table are noted one by one; more than that, and the owner looks at all. */
export const JOURNAL_LENGTH = 256;

/** The words of one client. */
export const LINE = {
  /** Even while the memory map stands still, odd while it changes. Written by the owner. */
  sequence: 0,
  /** Why the client is served no longer: `CLOSED`, 0 while it is. Written by the owner. */
  closed: 1,
  /** 1 while somebody waits for locks to be released. Written by the owner. */
  draining: 2,
  /** 1 while writes are to be marked. Written by the owner while clients are held off, as the next two are. */
  marking: 3,
  /** The host address of the marks, the low half, for a client in the owner's process. */
  marksLow: 4,
  /** The high half. */
  marksHigh: 5,
  /** 1 while the client accesses guest memory. Written by the client. */
  reading: 16,
  /** 1 while the client sleeps on `sequence`. Written by the client. */
  waiting: 17,
  /** How many messages the client has sent by the port that it brought along. Written by the client. */
  posted: 18,
  /** How many changes of the lock table have been noted. Written by the client, reset by the owner behind the gate. */
  noted: 32,
  /** One past the highest slot of the lock table that was ever used. Written by the client. */
  slots: 33,
  /** The slots that changed. Written by the client. */
  journal: 34,
  /** How many words there are. */
  words: 34 + JOURNAL_LENGTH,
} as const;

/** Why a client is served no longer. */
export const CLOSED = {
  /** It is. */
  no: 0,
  /** The owner serves it no longer. */
  client: 1,
  /** The manager has been disposed. */
  manager: 2,
  /** It broke the protocol, or missed a deadline. */
  cutOff: 3,
} as const;

/** The words through which a synchronous client makes requests and gets answers; texts lie elsewhere. */
export const MAIL = {
  /** Twice the number of the request that is waited for, one more once it has begun, 0 for none. Written by both. */
  request: 0,
  /** What the request is: `TEXT`, or the code of a request in numbers. Written by the client. */
  asked: 16,
  /** The length of its text in bytes. Written by the client. */
  askedLength: 17,
  /** The number of the request that was answered last. Written by the owner. */
  answered: 32,
  /** What the answer is: `TEXT`, or the code of an answer in numbers. Written by the owner. */
  answer: 33,
  /** The length of its text in bytes. Written by the owner. */
  answerLength: 34,
  /** How many words there are. */
  words: 48,
  /** Where the numbers of a request begin, in bytes. */
  numbers: 192,
  /** Where those of an answer begin: a late one must not take the place of the next request's. */
  answerNumbers: 256,
  /** How many numbers there is room for, in either. */
  numberCount: 8,
  /** How many bytes all of it takes. */
  bytes: 320,
} as const;

/** Says that a request or an answer is JSON. */
export const TEXT = 0;

/** How large shared memory that grows may become, in bytes. It costs addresses, not memory. */
export const GROWS_TO = 2 ** 32;

/** Makes shared memory of `bytes` that can grow. */
export function growable(bytes: number, limit: number = GROWS_TO): SharedArrayBuffer {
  return new SharedArrayBuffer(bytes, { maxByteLength: limit });
}

/** Words that two sides share, and ways to wait for them. */
export interface SharedWords {
  /** The words, for `Atomics`. */
  readonly words: Int32Array;
  /** Sleeps while the word at `index` is `value`, for `timeout` milliseconds at most. */
  wait(index: number, value: number, timeout: number): void;
  /** Wakes whoever sleeps on the word at `index`. */
  notify(index: number): void;
}

/** Words that threads share. */
export class ThreadWords implements SharedWords {
  readonly words: Int32Array<SharedArrayBuffer>;

  /** Those of `buffer`, or of a new one with so many. */
  constructor(of: SharedArrayBuffer | number) {
    this.words = new Int32Array(typeof of === "number" ? new SharedArrayBuffer(of * Int32Array.BYTES_PER_ELEMENT) : of);
  }

  wait(index: number, value: number, timeout: number): void {
    Atomics.wait(this.words, index, value, timeout);
  }

  notify(index: number): void {
    Atomics.notify(this.words, index);
  }
}
