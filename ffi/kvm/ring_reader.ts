/**
 * The ring in which KVM notes the pages that one vCPU has written, as one thread sees it.
 *
 * Two threads harvest it: the one that runs the vCPU, when the ring is full and the guest cannot go on, and the one that
 * owns the VM, when somebody wants to know. They share a lock, where the next entry is, and a spill: pages that the vCPU's
 * thread has harvested and nobody has asked for yet.
 *
 * ```
 *   KVM writes ->  [ slot, page | slot, page | ... ]  -> harvested -> KVM_RESET_DIRTY_RINGS -> KVM writes again
 *                                                          |
 *                                          spill, or straight to who asked
 * ```
 *
 * Why it is safe: it reads the vCPU's own mapping through arrays of its length, of which the kernel has said that there is
 * as much; an entry is marked as harvested after what it says has been kept. Waiting for the lock is bounded: whoever died with it has lost pages, so all of them count as
 * written.
 *
 * @module
 */

import { adviseHost } from "../os/advise.ts";
import { FileMapping } from "../os/address_space.ts";
import { libc } from "../os/libc.ts";
import { F_DUPFD_CLOEXEC, MADV_POPULATE_READ, PROT_READ, PROT_WRITE } from "../os/mman.ts";
import { unwrap } from "../os/os_error.ts";
import type { Held } from "./attachments.ts";
import { KVM_DIRTY_GFN_F_DIRTY, KVM_DIRTY_GFN_F_RESET, KVM_DIRTY_LOG_PAGE_OFFSET } from "./constants.ts";
import { ioctlValue } from "./ioctl.ts";
import { DIRTY_GFN } from "./layout.ts";
import { unsigned } from "./numbers.ts";

/** Throws unless a ring can have `entries` entries. */
export function checkRingEntries(entries: number): void {
  if (Number.isInteger(entries) && entries >= 256 && entries <= 2 ** 20 && Number.isInteger(Math.log2(entries))) return;
  throw new RangeError(`The entries of a dirty ring must be a power of two of at least 256, got ${entries}`);
}

/** What another thread of this process needs to harvest the ring of a vCPU. Plain data. */
export interface SharedRing {
  /** The descriptor of the VM, which stays the VM's. */
  readonly vm: number;
  /** How many entries the ring has, a power of two. */
  readonly entries: number;
  /** The lock, the place in the ring, and the spill. */
  readonly state: SharedArrayBuffer;
}

/** Words at the start of the shared state, 32 bits each. */
const STATE = { lock: 0, next: 1, spilled: 2, lost: 3 } as const;
/** Where the spill begins, in bytes. */
const SPILL_AT = 64;
/** How many pages the spill holds: 2 MiB of numbers, which take memory as they are used. */
const SPILL = 2 ** 18;
/** An entry as one number: the slot, then 32 bits of page. */
const SLOT_UNIT = 2 ** 32;
/** How long to wait for the lock, in milliseconds: holding it takes a few at most. */
const PATIENCE = 2000;

/** The state that the threads of a new ring share. */
export function newRing(vm: number, entries: number): SharedRing {
  return { vm, entries, state: new SharedArrayBuffer(SPILL_AT + 8 * SPILL) };
}

/** What a harvest finds: the slot's number and the page within it. */
export type RingVisitor = (slot: number, page: number) => void;

/** The ring of one vCPU in one thread. */
export class RingReader implements Disposable {
  readonly #ring: Uint32Array<ArrayBuffer>;
  readonly #mapping: FileMapping;
  readonly #entries: number;
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #spill: Float64Array<SharedArrayBuffer>;
  readonly #vm: number;
  /** Where the next entry was at the end of the last spill. */
  #left: number | undefined;
  #disposed = false;

  /**
   * Maps the ring of the vCPU `vcpu`, and duplicates the descriptor of its VM.
   *
   * @throws {OsError} If it has none, or the VM is gone.
   */
  constructor(vcpu: number, { vm, entries, state }: SharedRing) {
    checkRingEntries(entries);
    if (!(state instanceof SharedArrayBuffer)) throw new TypeError("The state of a ring must be a SharedArrayBuffer");
    unsigned(vm, 31, "File descriptor");
    this.#entries = entries;
    this.#words = new Int32Array(state, 0, SPILL_AT / 4);
    this.#spill = new Float64Array(state, SPILL_AT, SPILL);
    const length = entries * DIRTY_GFN.size;
    const { sys, errno } = libc();
    this.#vm = unwrap(sys.fcntl(vm, F_DUPFD_CLOEXEC, 0), errno[0], "fcntl", () => "the VM of a dirty ring");
    try {
      using undo = new DisposableStack();
      this.#mapping = new FileMapping(vcpu, KVM_DIRTY_LOG_PAGE_OFFSET * 4096, length, PROT_READ | PROT_WRITE);
      undo.use(this.#mapping);
      // Where the ring is shorter than another thread says, the kernel says so now instead of by a signal later.
      adviseHost(this.#mapping.address, length, MADV_POPULATE_READ);
      this.#ring = new Uint32Array(this.#mapping.bytes);
      undo.move();
    } catch (error) {
      sys.close(this.#vm);
      throw error;
    }
  }

  /**
   * Empties the ring into the spill and gives it back to KVM, so that the vCPU can go on.
   *
   * @returns Whether there was anything in it since the last time: the owner may have emptied it just now.
   */
  spill(): boolean {
    const words = this.#words;
    let isFresh = false;
    this.#locked(() => {
      this.#walk((slot, page) => {
        if (this.#spilled >= SPILL) this.#compact();
        const at = this.#spilled;
        this.#spill[at] = slot * SLOT_UNIT + page;
        words[STATE.spilled] = at + 1;
      });
      const next = words[STATE.next]!;
      isFresh = next !== this.#left;
      this.#left = next;
    });
    return this.reset() > 0 || isFresh;
  }

  /**
   * Tells what is in the spill and in the ring. KVM gets the entries back by `reset`.
   *
   * @returns Whether pages were lost: then any page may have been written.
   */
  harvest(visit: RingVisitor): boolean {
    const words = this.#words;
    let lost = false;
    this.#locked(() => {
      const spilled = this.#spilled;
      for (let i = 0; i < spilled; i++) {
        const entry = this.#spill[i]!;
        const slot = Math.floor(entry / SLOT_UNIT);
        visit(slot, entry - slot * SLOT_UNIT);
      }
      words[STATE.spilled] = 0;
      this.#walk(visit);
      lost = words[STATE.lost] !== 0;
      words[STATE.lost] = 0;
    });
    return lost;
  }

  /** Gives what was harvested of all rings back to KVM, which returns how many entries that are. */
  reset(): number {
    return ioctlValue(this.#vm, "KVM_RESET_DIRTY_RINGS", 0);
  }

  /** What it holds. */
  get held(): Held {
    return { fd: this.#vm, address: this.#mapping.address, length: this.#mapping.length };
  }

  /** Unmaps it. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    libc().sys.close(this.#vm);
    this.#mapping[Symbol.dispose]();
  }

  /** How many pages are spilled; never more than there is room for, whatever another thread has written there. */
  get #spilled(): number {
    return Math.min(this.#words[STATE.spilled]! >>> 0, SPILL);
  }

  #walk(visit: RingVisitor): number {
    const ring = this.#ring;
    const words = this.#words;
    const mask = this.#entries - 1;
    let next = words[STATE.next]!;
    let found = 0;
    for (; found <= mask; found++) {
      const at = (next & mask) * (DIRTY_GFN.size / 4);
      if ((ring[at]! & KVM_DIRTY_GFN_F_DIRTY) === 0) break;
      // A slot has fewer than 2^31 pages: the high half of the page's number is 0.
      visit(ring[at + DIRTY_GFN.slot / 4]!, ring[at + DIRTY_GFN.offset / 4]!);
      next = (next + 1) | 0;
      words[STATE.next] = next;
      ring[at] = KVM_DIRTY_GFN_F_RESET;
    }
    return found;
  }

  /** Makes room in the spill: a page once is enough. Where that is not, all pages count as written. */
  #compact(): void {
    const spill = this.#spill;
    spill.sort();
    let kept = 1;
    for (let i = 1; i < SPILL; i++) if (spill[i] !== spill[i - 1]) spill[kept++] = spill[i]!;
    if (kept > SPILL / 2) {
      this.#words[STATE.lost] = 1;
      kept = 0;
    }
    this.#words[STATE.spilled] = kept;
  }

  #locked(use: () => void): void {
    const words = this.#words;
    const deadline = performance.now() + PATIENCE;
    while (Atomics.compareExchange(words, STATE.lock, 0, 1) !== 0) {
      Atomics.wait(words, STATE.lock, 1, 10);
      if (performance.now() > deadline) {
        // The other thread ended in the middle: what it had in its hands is unknown.
        words[STATE.lost] = 1;
        const at = ((words[STATE.next]! - 1) & (this.#entries - 1)) * (DIRTY_GFN.size / 4);
        if (this.#ring[at] === KVM_DIRTY_GFN_F_DIRTY) this.#ring[at] = KVM_DIRTY_GFN_F_RESET;
        break;
      }
    }
    try {
      use();
    } finally {
      Atomics.store(words, STATE.lock, 0);
      Atomics.notify(words, STATE.lock);
    }
  }
}
