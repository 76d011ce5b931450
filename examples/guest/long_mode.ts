/**
 * Guests in 64-bit mode at user privilege (CPL 3), with guest-virtual addresses equal to guest-physical ones.
 *
 * User privilege because that runs natively on every kind of KVM, including one without hardware virtualization; ports
 * are open to it (IOPL 3). There are no interrupt handlers, so an exception is a shutdown.
 *
 * @module
 */

import type { KvmSegment, KvmVcpu } from "membacking/kvm";

/** A part of guest memory the guest can address. */
export interface IdentityRange {
  /** The first address, a multiple of `pageSize`. */
  readonly start: number;
  /** One past the last address. */
  readonly end: number;
  /** The size of the guest's pages: 2 MiB when left out, or 4 KiB. */
  readonly pageSize?: 0x1000 | 0x20_0000;
}

/** What a long-mode guest consists of. */
export interface LongModeGuest {
  /** Puts bytes into guest memory. */
  readonly write: (gpa: number, bytes: Uint8Array) => void;
  /** Where the page tables go: three pages, and one more for every GiB and every 2 MiB of small pages. */
  readonly tables: number;
  /** Where the code goes. */
  readonly code: number;
  /** The code. */
  readonly program: Uint8Array;
  /** What can be addressed, which has to include the code. Several ranges must not share a guest page. */
  readonly ranges: readonly IdentityRange[];
}

const TABLE = 0x1000;
const PRESENT_WRITABLE_USER = 0x7n;
const ACCESSED_DIRTY = 0x60n;
const LARGE = 0x80n;

const CR0 = 0x8001_0033n; // PG, WP, NE, ET, MP, PE
const CR4 = 0x620n; // OSXMMEXCPT, OSFXSR, PAE
const EFER = 0x500n; // LMA, LME
const RFLAGS = 0x3002n; // IOPL 3

/** Puts the guest into memory, and makes the vCPU begin at its first instruction. */
export function startLongMode(vcpu: KvmVcpu, guest: LongModeGuest): void {
  const { write, tables, code, program, ranges } = guest;
  for (const [at, page] of pageTables(tables, ranges)) write(at, new Uint8Array(page.buffer));
  write(code, program);

  const base = vcpu.getSregs();
  const user: KvmSegment = {
    ...{ base: 0n, limit: 0xffff_ffff, selector: 0x23, type: 0x3, present: 1, dpl: 3 },
    ...{ db: 1, s: 1, l: 0, g: 1, avl: 0, unusable: 0 },
  };
  const userCode: KvmSegment = { ...user, selector: 0x2b, type: 0xb, db: 0, l: 1 };
  // The kernel insists on a busy task segment in long mode.
  const task: KvmSegment = { ...base.tr, base: 0n, limit: 0x67, selector: 0x30, type: 0xb, present: 1, s: 0, g: 0 };
  vcpu.setSregs({
    ...{ cs: userCode, ss: user, ds: user, es: user, fs: user, gs: user, tr: task },
    ...{ cr0: CR0, cr3: BigInt(tables), cr4: CR4, efer: EFER },
  });
  vcpu.setRegs({ rip: BigInt(code), rflags: RFLAGS, rsp: 0n });
}

/** The pages of the tables by their guest-physical addresses; the first is the root. */
export function pageTables(
  at: number,
  ranges: readonly IdentityRange[],
): ReadonlyMap<number, BigUint64Array<ArrayBuffer>> {
  const pages = new Map<number, BigUint64Array<ArrayBuffer>>();
  const newPage = () => {
    const address = at + pages.size * TABLE;
    const page = new BigUint64Array(TABLE / 8);
    pages.set(address, page);
    return { address, page };
  };
  const root = newPage();

  /** The table below entry `index` of `table`. */
  const below = (table: BigUint64Array, index: number): BigUint64Array => {
    const entry = table[index] ?? 0n;
    if (entry !== 0n) return pages.get(Number(entry & ~0xfffn)) ?? unreachable();
    const { address, page } = newPage();
    table[index] = BigInt(address) | PRESENT_WRITABLE_USER | 0x20n;
    return page;
  };

  for (const { start, end, pageSize = 0x20_0000 } of ranges) {
    for (let gpa = start; gpa < end; gpa += pageSize) {
      const index = (size: number) => Math.floor(gpa / size) % 512;
      const directory = below(below(root.page, index(2 ** 39)), index(2 ** 30));
      const leaf = BigInt(gpa) | PRESENT_WRITABLE_USER | ACCESSED_DIRTY;
      if (pageSize === 0x1000) below(directory, index(2 ** 21))[index(2 ** 12)] = leaf;
      else directory[index(2 ** 21)] = leaf | LARGE;
    }
  }
  return pages;
}

function unreachable(): never {
  throw new RangeError("Two ranges share a guest page");
}
