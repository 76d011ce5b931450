import { checkBoolean } from "./check_boolean.ts";
import type { MemoryPolicy } from "./targets.ts";

/** One object per policy, so that equal means identical. */
const known = new Map<string, MemoryPolicy>();
/** The same objects: what has been here before is known without a look at it. */
const checked = new WeakSet<MemoryPolicy>();

/**
 * A policy as it was given, checked, in an object that never changes and is the same for the same policy.
 *
 * @throws {TypeError} If it is no object, or a field has the wrong type.
 * @throws {RangeError} If the NUMA node is not an integer from 0 to 1023.
 */
export function ownPolicy(policy: MemoryPolicy): MemoryPolicy {
  if (typeof policy !== "object" || policy === null) throw new TypeError("A memory policy must be an object");
  if (checked.has(policy)) return policy;
  const { hostNumaNode, transparentHugepages, coreDump, fork, name } = policy;
  if (transparentHugepages !== undefined) checkBoolean(transparentHugepages, "transparentHugepages");
  if (coreDump !== undefined) checkBoolean(coreDump, "coreDump");
  if (fork !== undefined) checkBoolean(fork, "fork");
  if (
    hostNumaNode !== undefined && !(Number.isInteger(hostNumaNode) && hostNumaNode >= 0 && hostNumaNode <= 1023)
  ) {
    throw new RangeError(`Host NUMA node must be an integer from 0 to 1023, got ${hostNumaNode}`);
  }
  if (name !== undefined && typeof name !== "string") {
    throw new TypeError(`The name of a memory policy must be a string, got ${typeof name}`);
  }
  // Of these only a name can have any characters, and it comes last.
  const key = `${hostNumaNode} ${transparentHugepages} ${coreDump} ${fork} ${name === undefined ? "" : `"${name}`}`;
  const found = known.get(key);
  if (found !== undefined) return found;
  const own = Object.freeze({
    ...(hostNumaNode !== undefined && { hostNumaNode }),
    ...(transparentHugepages !== undefined && { transparentHugepages }),
    ...(coreDump !== undefined && { coreDump }),
    ...(fork !== undefined && { fork }),
    ...(name !== undefined && { name }),
  });
  known.set(key, own);
  checked.add(own);
  return own;
}
