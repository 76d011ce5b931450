/**
 * The limits of this process, lowered for a while.
 *
 * @module
 */

import { libc } from "../../../ffi/os/libc.ts";
import { MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, PROT_NONE, PROT_READ } from "../../../ffi/os/mman.ts";
import { unwrap } from "../../../ffi/os/os_error.ts";
import { fdFlags, mappings, readProc, status } from "../../support/proc.ts";
import { PAGE } from "../../support/units.ts";

const C = Deno.dlopen("libc.so.6", {
  getrlimit: { parameters: ["i32", "buffer"], result: "i32" },
  setrlimit: { parameters: ["i32", "buffer"], result: "i32" },
  capget: { parameters: ["buffer", "buffer"], result: "i32" },
  capset: { parameters: ["buffer", "buffer"], result: "i32" },
  dup: { parameters: ["i32"], result: "i32" },
}).symbols;

const RLIMIT_NOFILE = 7;
const RLIMIT_MEMLOCK = 8;
const RLIMIT_AS = 9;
const RLIMIT_SIGPENDING = 11;
const CAP_IPC_LOCK = 14;
const CAPABILITY_VERSION_3 = 0x2008_0522;

/** Lowers the soft limit of a resource, until disposed. */
function lower(resource: number, limit: number): Disposable {
  const before = new BigUint64Array(2);
  unwrap(C.getrlimit(resource, before), 0, "getrlimit");
  const [, hard = 0n] = before;
  unwrap(C.setrlimit(resource, new BigUint64Array([BigInt(limit), hard])), 0, "setrlimit");
  return { [Symbol.dispose]: () => void unwrap(C.setrlimit(resource, before), 0, "setrlimit") };
}

/** Lets this thread lock no more than `bytes` of memory, whoever runs it, until disposed. */
export function lockAtMost(bytes: number): Disposable {
  const stack = new DisposableStack();
  stack.use(lower(RLIMIT_MEMLOCK, bytes));
  const header = new Uint32Array([CAPABILITY_VERSION_3, 0]);
  const before = new Uint32Array(6);
  unwrap(C.capget(header, before), 0, "capget");
  // Effective, permitted and inheritable capabilities, the low halves first.
  const less = before.with(0, (before[0] ?? 0) & ~(1 << CAP_IPC_LOCK));
  unwrap(C.capset(header, less), 0, "capset");
  stack.defer(() => void unwrap(C.capset(header, before), 0, "capset"));
  return stack;
}

/** Lets this process map nothing more, until disposed. */
export function noAddressSpace(): Disposable {
  return lower(RLIMIT_AS, 0);
}

/**
 * Lets this process map no more than so many bytes more, until disposed. The engine needs some of them, and ends the
 * process when it gets none.
 */
export function littleAddressSpace(bytes: number): Disposable {
  return lower(RLIMIT_AS, status("VmSize") * 1024 + bytes);
}

/** Lets this user have no signal in a queue, until disposed. */
export function noQueuedSignals(): Disposable {
  return lower(RLIMIT_SIGPENDING, 0);
}

/** Leaves no file descriptor to this process, or so many, until disposed. */
export function noDescriptors(spare = 0): Disposable {
  const stack = new DisposableStack();
  let limit = 3;
  for (let fd = 0; fd < 1024; fd++) if (fdFlags(fd) !== undefined) limit = fd + 1;
  stack.use(lower(RLIMIT_NOFILE, limit + spare));
  const taken: number[] = [];
  for (let fd = C.dup(0); fd !== -1; fd = C.dup(0)) taken.push(fd);
  const close = () => taken.splice(0).forEach((fd) => void libc().sys.close(fd));
  stack.defer(close);
  for (const fd of taken.splice(0, spare)) libc().sys.close(fd);
  return stack;
}

/** How many kernel mappings a process may have. */
export function mappingLimit(): number {
  return Number(readProc("/proc/sys/vm/max_map_count"));
}

/**
 * Makes foreign mappings until this process can make only about `spare` others, until disposed. That should be enough
 * for V8, which ends the process when it gets none.
 */
export function fewMappings(spare: number): Disposable {
  const { sys } = libc();
  const pairs = Math.floor((mappingLimit() - mappings().length - spare) / 2);
  const length = BigInt((2 * pairs + 1) * PAGE);
  const start = sys.mmapFresh(0n, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0n);
  for (let i = 0; i < pairs; i++) {
    // A page with another protection than its neighbours makes two mappings more.
    if (sys.mprotect(start + BigInt((2 * i + 1) * PAGE), BigInt(PAGE), PROT_READ) === -1) break;
  }
  return { [Symbol.dispose]: () => void sys.munmap(start, length) };
}
