import type { Access } from "./targets.ts";

const ACCESS: readonly Access[] = Array.from({ length: 8 }, (_, bits) =>
  Object.freeze({
    writable: (bits & 1) !== 0,
    executable: (bits & 2) !== 0,
    logDirty: (bits & 4) !== 0,
  }));

/** One object per kind of access, so that equal means identical. What nobody can write is never logged. */
export function accessOf(writable: boolean, executable: boolean, logDirty: boolean): Access {
  return ACCESS[(writable ? 1 : 0) + (executable ? 2 : 0) + (logDirty && writable ? 4 : 0)]!;
}

/** Whether two accesses made by `accessOf` allow the same, logged or not. */
export function isSameAccess(a: Access, b: Access): boolean {
  return a.writable === b.writable && a.executable === b.executable;
}
