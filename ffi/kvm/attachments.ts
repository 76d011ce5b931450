/**
 * Who has attached to a vCPU, so that what a thread had is given back when that thread is ended without a word, as
 * `Worker.terminate` does.
 *
 * A table in shared memory says which thread holds which descriptor and mapping. A thread that detaches strikes its entry
 * first and closes afterwards: one that ends in between leaves them behind, which is better than somebody else's
 * descriptor of the same number closed.
 *
 * Why it is safe: any thread that has the table may have scribbled on it. So an entry is believed only if the kernel
 * agrees: its thread is gone, its descriptor is a vCPU, and exactly one mapping of a vCPU lies at its address.
 *
 * @module
 */

import { LimitError } from "../../src/core/errors.ts";
import { cString, libc } from "../os/libc.ts";
import { eachLine } from "../os/proc_file.ts";
import { currentThread, isAlive, notedThread, startWords, type ThreadIdentity } from "../os/thread.ts";

const STATE = { free: 0, filling: 1, held: 2, closing: 3 } as const;
/** What each entry consists of, in 32-bit words. */
const ENTRY = {
  ...{ state: 0, thread: 1, startedLow: 2, startedHigh: 3, fd: 4, addressLow: 5, addressHigh: 6, length: 7, size: 8 },
} as const;
/** Two for each thread, where there are rings. */
const ENTRIES = 128;
const BYTES = ENTRIES * ENTRY.size * Int32Array.BYTES_PER_ELEMENT;
const TWO_32 = 2 ** 32;

/** What an attachment holds: once for the page that it shares with the VMM, and once for its ring of written pages. */
export interface Held {
  /** The descriptor of the vCPU, or of its VM. */
  readonly fd: number;
  /** Where a part of the vCPU is mapped. */
  readonly address: number;
  /** The length of that in bytes. */
  readonly length: number;
}

/** The attachments of one vCPU. */
export class Attachments {
  /** For other threads. */
  readonly buffer: SharedArrayBuffer;
  readonly #words: Int32Array;

  /**
   * A new table, or that of a vCPU that another thread has shared.
   *
   * @throws {TypeError | RangeError} If `buffer` is no such table.
   */
  constructor(buffer: SharedArrayBuffer = new SharedArrayBuffer(BYTES)) {
    this.#words = sharedWords(buffer, BYTES / Int32Array.BYTES_PER_ELEMENT, "attachments");
    this.buffer = buffer;
  }

  /** Whether any thread is attached, as far as the table says. */
  get isEmpty(): boolean {
    for (let at = 0; at < this.#words.length; at += ENTRY.size) {
      if (Atomics.load(this.#words, at + ENTRY.state) === STATE.held) return false;
    }
    return true;
  }

  /**
   * Notes all that this thread holds, or nothing. The result strikes it off, to be called before it is closed.
   *
   * @throws {LimitError} If too many threads are attached.
   */
  noteAll(all: readonly Held[]): () => void {
    const strikes: (() => void)[] = [];
    const strikeAll = () => strikes.forEach((strike) => strike());
    try {
      for (const held of all) strikes.push(this.#note(held));
    } catch (error) {
      strikeAll();
      throw error;
    }
    return strikeAll;
  }

  #note({ fd, address, length }: Held): () => void {
    const words = this.#words;
    const thread = currentThread();
    const [startedLow, startedHigh] = startWords(thread);
    for (let at = 0; at < words.length; at += ENTRY.size) {
      if (Atomics.compareExchange(words, at + ENTRY.state, STATE.free, STATE.filling) !== STATE.free) continue;
      words[at + ENTRY.thread] = thread.tid;
      words[at + ENTRY.startedLow] = startedLow;
      words[at + ENTRY.startedHigh] = startedHigh;
      words[at + ENTRY.fd] = fd;
      words[at + ENTRY.addressLow] = address | 0;
      words[at + ENTRY.addressHigh] = Math.floor(address / TWO_32);
      words[at + ENTRY.length] = length;
      Atomics.store(words, at + ENTRY.state, STATE.held);
      return () => Atomics.store(words, at + ENTRY.state, STATE.free);
    }
    throw new LimitError("attachments to one vCPU", ENTRIES, ENTRIES + 1, "dispose those that are not used");
  }

  /** The threads that are attached, as far as the table says: any of them may run the vCPU. */
  get threads(): readonly ThreadIdentity[] {
    const threads: ThreadIdentity[] = [];
    for (let at = 0; at < this.#words.length; at += ENTRY.size) {
      if (Atomics.load(this.#words, at + ENTRY.state) === STATE.held) threads.push(this.#threadAt(at));
    }
    return threads;
  }

  #threadAt(at: number): ThreadIdentity {
    const word = (at: number) => this.#words[at] ?? 0;
    return notedThread(word(at + ENTRY.thread), word(at + ENTRY.startedLow), word(at + ENTRY.startedHigh));
  }

  /**
   * Closes and unmaps what threads that are gone have left of the files called `names` (see `fileName`): the vCPU, and
   * where it has a ring its VM. `own` is left alone.
   */
  reap(names: readonly string[], own: readonly Held[]): void {
    const words = this.#words;
    const word = (at: number) => (words[at] ?? 0) >>> 0;
    for (let at = 0; at < words.length; at += ENTRY.size) {
      if (Atomics.load(words, at + ENTRY.state) !== STATE.held) continue;
      if (isAlive(this.#threadAt(at))) continue;
      const closing = Atomics.compareExchange(words, at + ENTRY.state, STATE.held, STATE.closing);
      if (closing !== STATE.held) continue; // another thread has come first
      const fd = word(at + ENTRY.fd);
      const address = word(at + ENTRY.addressLow) + word(at + ENTRY.addressHigh) * TWO_32;
      const length = word(at + ENTRY.length);
      if (!own.some((held) => held.fd === fd) && names.includes(fileName(fd))) libc().sys.close(fd);
      if (!own.some((held) => held.address === address) && isMappingOf(names, address, length)) {
        // SAFETY: a mapping of a vCPU that, by its record, only a thread that is gone has looked at.
        libc().sys.munmap(BigInt(address), BigInt(length));
      }
      Atomics.store(words, at + ENTRY.state, STATE.free);
    }
  }
}

/**
 * A view of words that another thread has sent.
 *
 * @throws {TypeError | RangeError} If it is no shared buffer of at least `count` words.
 */
export function sharedWords(buffer: SharedArrayBuffer, count: number, what: string): Int32Array {
  if (!(buffer instanceof SharedArrayBuffer)) throw new TypeError(`The ${what} must be a SharedArrayBuffer`);
  return new Int32Array(buffer, 0, count);
}

const NAME_LENGTH = 64;

/** What the kernel calls the file of a descriptor: `anon_inode:kvm-vcpu:ID` for a vCPU, `anon_inode:kvm-vm` for a VM. */
export function fileName(fd: number): string {
  const target = new Uint8Array(NAME_LENGTH);
  // SAFETY: the kernel writes at most the length of the buffer.
  const length = libc().sys.readlink(cString(`/proc/self/fd/${fd}`), target, BigInt(NAME_LENGTH));
  return new TextDecoder().decode(target.subarray(0, Math.max(0, length)));
}

function isMappingOf(names: readonly string[], address: number, length: number): boolean {
  const range = `${address.toString(16).padStart(8, "0")}-${(address + length).toString(16).padStart(8, "0")} `;
  let found = false;
  eachLine("/proc/self/maps", (line) => {
    if (line.startsWith(range) && names.some((name) => line.endsWith(` ${name}`))) found = true;
  });
  return found;
}

// Tables of vCPUs that were disposed while a thread was attached, and the names of those vCPUs: if that thread is
// terminated, nobody else knows.
const abandoned = new Map<Attachments, readonly string[]>();
/** When to look again, in milliseconds: a thread that is being terminated is gone a moment later. */
const REAP_AFTER: readonly number[] = [1, 10, 100, 1000];

/** Looks after the table of a vCPU of this thread that has been disposed, and of the files called `names`. */
export function abandon(attachments: Attachments, names: readonly string[]): void {
  abandoned.set(attachments, names);
  reapAbandoned(REAP_AFTER);
}

/** Gives back what terminated threads have left of vCPUs that are disposed here; what they still have, after a while. */
export function reapAbandoned(after: readonly number[] = []): void {
  for (const [attachments, names] of abandoned) {
    attachments.reap(names, []);
    if (attachments.isEmpty) abandoned.delete(attachments);
  }
  const [delay, ...rest] = after;
  if (abandoned.size > 0 && delay !== undefined) Deno.unrefTimer(setTimeout(() => reapAbandoned(rest), delay));
}
