import type { Access } from "./targets.ts";

const ACCESS: readonly Access[] = [
  Object.freeze({ writable: false, executable: false }),
  Object.freeze({ writable: true, executable: false }),
  Object.freeze({ writable: false, executable: true }),
  Object.freeze({ writable: true, executable: true }),
];

/** One object per kind of access, so that equal means identical. */
export function accessOf(writable: boolean, executable: boolean): Access {
  return ACCESS[(writable ? 1 : 0) + (executable ? 2 : 0)]!;
}

/** Whether two accesses made by `accessOf` are equal. */
export function isSameAccess(a: Access, b: Access): boolean {
  return a === b;
}
