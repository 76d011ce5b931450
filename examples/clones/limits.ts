/**
 * What a number of clones takes of what a process may have, counted beforehand.
 *
 * @module
 */

/** What one clone takes at most: a VM, a vCPU and some to spare; a dozen mappings, those of KVM included. */
const PER_CLONE = { descriptors: 4, mappings: 16, bytes: 2 * 2 ** 20 };

/** What the limits are, and who sets them. */
interface Limit {
  readonly what: string;
  readonly have: number;
  readonly perClone: number;
  readonly how: string;
}

function number(path: string, pattern: RegExp): number {
  const found = pattern.exec(Deno.readTextFileSync(path))?.[1];
  return found === undefined || found === "unlimited" ? Infinity : Number(found);
}

function limits(): Limit[] {
  return [
    {
      what: "open files",
      have: number("/proc/self/limits", /^Max open files\s+(\S+)/m) - 100,
      perClone: PER_CLONE.descriptors,
      how: "raise it with ulimit -n",
    },
    {
      what: "kernel mappings",
      have: number("/proc/sys/vm/max_map_count", /(\d+)/) - 8192,
      perClone: PER_CLONE.mappings,
      how: "raise the sysctl vm.max_map_count",
    },
    {
      what: "bytes of memory",
      have: number("/proc/meminfo", /^MemAvailable:\s+(\d+)/m) * 1024,
      perClone: PER_CLONE.bytes,
      how: "use a machine with more memory",
    },
  ];
}

/** Why so many clones cannot be had, one line for each reason; none if they can. */
export function shortages(count: number): string[] {
  return limits().flatMap(({ what, have, perClone, how }) =>
    have >= count * perClone ? [] : [
      `${count} clones take ${count * perClone} ${what}, and there are ${have}: ask for at most ${
        Math.floor(have / perClone)
      }, or ${how}`,
    ]
  );
}
