/**
 * One processor for two programs: those of a virtual machine may differ by a fifth, and the scheduler decides which
 * program gets which.
 *
 * @module
 */

const C = Deno.dlopen("libc.so.6", {
  // int sched_getaffinity(pid_t pid, size_t cpusetsize, cpu_set_t *mask);
  sched_getaffinity: { parameters: ["i32", "usize", "buffer"], result: "i32" },
  // int sched_setaffinity(pid_t pid, size_t cpusetsize, const cpu_set_t *mask);
  sched_setaffinity: { parameters: ["i32", "usize", "buffer"], result: "i32" },
}).symbols;

/** The bytes of a `cpu_set_t`. */
const SIZE = 128;

/** Keeps this thread, and the programs it starts, on the first processor it may use, until disposed. */
export function onOneCpu(): Disposable {
  const before = new Uint8Array(SIZE);
  if (C.sched_getaffinity(0, BigInt(SIZE), before) !== 0) throw new Error("sched_getaffinity failed");
  const one = new Uint8Array(SIZE);
  const byte = before.findIndex((bits) => bits !== 0);
  one[byte] = (before[byte] ?? 0) & -(before[byte] ?? 0);
  if (C.sched_setaffinity(0, BigInt(SIZE), one) !== 0) throw new Error("sched_setaffinity failed");
  return { [Symbol.dispose]: () => void C.sched_setaffinity(0, BigInt(SIZE), before) };
}
