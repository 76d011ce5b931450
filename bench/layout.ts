/**
 * Where everything lies: the same addresses, sizes and file offsets in every program, C and Rust included.
 *
 * @module
 */

export const PAGE = 4096;
export const KIB = 1024;
export const MIB = 1024 * KIB;

/** Where the region of a row begins, a guest-physical address. */
export const REGION = 256 * MIB;
export const REGION_SIZE = 4 * MIB;
/** Where the mapping of a row lies. */
export const AT: number = REGION + 2 * MIB;
/** How much address space there is. */
export const RESERVED = 1024 * MIB;
export const RAM_SIZE = 512 * MIB;
/** How long the file is that rows map parts of. */
export const FILE_SIZE: number = 16 * MIB;
/** Where a BAR goes that moves away from `AT`. */
export const OTHER_PLACE: number = REGION + 16 * MIB;
export const BAR_SIZE: number = 64 * KIB;
/** The length of the largest range that a PC chipset switches, the firmware's own. */
export const PAM_SIZE: number = 64 * KIB;
/** Where in the file the replacement of a mapping begins. */
export const OTHER_OFFSET = 2 * MIB;

/** Where access number `i` of the memory rows is: the same few lines again and again, or each time another part. */
export function accessAt(i: number, size: number, far: boolean): number {
  return far ? i * size % FILE_SIZE : (i & 15) * 64;
}

/** How many accesses one time of an accessor's row makes: one alone is shorter than a clock can tell. */
export const ACCESSES = 1000;

/** `out 0x10, al`, and a jump back to it: a real-mode guest that does nothing but leave. */
export const PORT_LOOP: Uint8Array<ArrayBuffer> = new Uint8Array([0xe6, 0x10, 0xeb, 0xfc]);
export const CODE = 0x1000;
export const GUEST_SIZE = 64 * KIB;

/** The rows that copy to and from guest memory: direction, bytes, and whether all over the file or in cache. */
export const COPIES: Readonly<Record<string, readonly ["read" | "write", size: number, far: boolean]>> = {
  "read-4": ["read", 4, false],
  "read-64": ["read", 64, false],
  "read-4k": ["read", 4 * KIB, false],
  "read-4k-far": ["read", 4 * KIB, true],
  "read-1m-far": ["read", MIB, true],
  "write-4": ["write", 4, false],
  "write-64": ["write", 64, false],
  "write-4k": ["write", 4 * KIB, false],
  "write-4k-far": ["write", 4 * KIB, true],
  "write-1m-far": ["write", MIB, true],
};
