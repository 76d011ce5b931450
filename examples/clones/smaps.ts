/**
 * How much memory guests have of their own, as the kernel counts it.
 *
 * @module
 */

/** Host addresses of a guest. */
export interface HostRange {
  readonly start: number;
  readonly end: number;
}

/**
 * The bytes that each guest has of its own, by one look at /proc/self/smaps: `Anonymous`, which is what was written to a
 * private mapping. (`Private_Dirty` and its like also count pages of a file that only this process has read.)
 */
export function ownBytes(guests: readonly HostRange[]): number[] {
  const order = guests.map((range, index) => ({ ...range, index })).sort((a, b) => a.start - b.start);
  const bytes = guests.map(() => 0);
  let next = 0;
  let owner: number | null = null;
  for (const line of Deno.readTextFileSync("/proc/self/smaps").split("\n")) {
    const head = /^([0-9a-f]+)-[0-9a-f]+ /.exec(line);
    if (head !== null) {
      const start = parseInt(head[1]!, 16);
      while (next < order.length && order[next]!.end <= start) next++;
      const guest = order[next];
      owner = guest !== undefined && guest.start <= start ? guest.index : null;
    } else if (owner !== null && line.startsWith("Anonymous:")) {
      bytes[owner]! += 1024 * parseInt(line.slice("Anonymous:".length));
    }
  }
  return bytes;
}
