/**
 * The rows of the table that are done by several programs.
 *
 * @module
 */

/** One row. */
export interface Row {
  /** What the programs call it. */
  readonly name: string;
  /** What is measured, per line of the table. */
  readonly title: string;
  /** Which part of the table it stands in. */
  readonly section: "requests" | "memory" | "guest";
  /** The most the ratio may be, and to what. */
  readonly target?: { readonly to: "bare" | "C"; readonly atMost: number };
  /** Whether it needs a virtual machine. */
  readonly needsKvm: boolean;
  /** The system calls of one time, for the eye. */
  readonly calls: string;
}

/** A request that is one or two mmaps. */
const MMAPS = { to: "bare", atMost: 1.25 } as const;
/** The same where the list of shareable regions has to be looked at, and those who watch it told. */
const WATCHED = { to: "bare", atMost: 2 } as const;
/** A request of many mmaps. */
const MANY = { to: "bare", atMost: 1.15 } as const;
/** A request that changes a slot. */
const SLOTS = { to: "bare", atMost: 1.05 } as const;
/** A copy. */
const COPY = { to: "C", atMost: 1.1 } as const;

function request(name: string, title: string, calls: string, target: Row["target"]): Row {
  return { name, title, section: "requests", needsKvm: true, calls, ...(target && { target }) };
}

function memory(name: string, title: string, target?: Row["target"]): Row {
  return { name, title, section: "memory", needsKvm: false, calls: "", ...(target && { target }) };
}

/** All of them, in the order of the table. */
export const ROWS: readonly Row[] = [
  request("window-4k", "map + unmap 4 KiB in a window", "2 mmap", MMAPS),
  request("window-64k", "map + unmap 64 KiB in a window", "2 mmap", MMAPS),
  request("window-2m", "map + unmap 2 MiB in a window", "2 mmap", MMAPS),
  request("replace-4k", "replace 4 KiB, twice", "2 mmap", MMAPS),
  request("replace-64k", "replace 64 KiB, twice", "2 mmap", MMAPS),
  request("replace-2m", "replace 2 MiB, twice", "2 mmap", MMAPS),
  request("switch", "switch two equal regions, and back", "2 mmap", MMAPS),
  request("device-64k", "map + unmap 64 KiB by DeviceMemory", "2 mmap", MMAPS),
  request("bar-move", "move a BAR, and back", "4 mmap, 4 ioctl", SLOTS),
  request("vmm-window-64k", "in a VMM: map + unmap 64 KiB in a window", "2 mmap", MMAPS),
  request("vmm-device-64k", "in a VMM: map + unmap 64 KiB by DeviceMemory", "2 mmap", MMAPS),
  request("vmm-replace-64k", "in a VMM: replace 64 KiB, twice", "2 mmap", MMAPS),
  request("vmm-switch", "in a VMM: switch two equal regions, and back", "2 mmap", MMAPS),
  request("vmm-bar-move", "in a VMM: move a BAR, and back", "4 mmap, 4 ioctl", SLOTS),
  request("vmm-bar-move-held", "in a VMM with a hook: move a BAR, and back", "4 mmap, 4 ioctl", SLOTS),
  request("vmm-pam", "in a VMM: PAM range read-only, and back", "2 mprotect, 4 ioctl", SLOTS),
  request("ram-window-64k", "watched RAM: map + unmap 64 KiB in a window", "2 mmap", WATCHED),
  request("ram-replace-64k", "watched RAM: replace 64 KiB, twice", "2 mmap", WATCHED),
  request("ram-switch", "watched RAM: switch two equal regions, and back", "2 mmap", WATCHED),
  request("slot-4k", "map + unmap 4 KiB with a slot", "2 mmap, 2 ioctl", SLOTS),
  request("slot-64k", "map + unmap 64 KiB with a slot", "2 mmap, 2 ioctl", SLOTS),
  request("slot-2m", "map + unmap 2 MiB with a slot", "2 mmap, 2 ioctl", SLOTS),
  request("region-1", "map + unmap a region of 1 mapping", "2 mmap, 2 ioctl", SLOTS),
  request("region-64", "map + unmap a region of 64 mappings", "65 mmap, 128 ioctl", SLOTS),
  request("window-64", "map + unmap a window of 64 mappings", "65 mmap, 2 ioctl", MANY),
  request("protect", "read-only on and off", "2 mprotect, 4 ioctl", SLOTS),
  request("ram-512m", "512 MiB RAM: build, attach, take down", "10 or more", SLOTS),
  memory("read-4", "read 4 B"),
  memory("read-64", "read 64 B"),
  memory("read-4k", "read 4 KiB, in cache", COPY),
  memory("read-4k-far", "read 4 KiB, all over 16 MiB", COPY),
  memory("read-1m-far", "read 1 MiB, all over 16 MiB", COPY),
  memory("write-4", "write 4 B"),
  memory("write-64", "write 64 B"),
  memory("write-4k", "write 4 KiB, in cache", COPY),
  memory("write-4k-far", "write 4 KiB, all over 16 MiB", COPY),
  memory("write-1m-far", "write 1 MiB, all over 16 MiB", COPY),
  memory("lock", "lock and release 4 KiB"),
  memory("lock-1000", "the same beside 1,000 locks"),
  { name: "exits", title: "one exit of a port loop", section: "guest", needsKvm: true, calls: "1 ioctl" },
];
