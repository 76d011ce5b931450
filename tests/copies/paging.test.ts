// What the kernel does with the pages of copies: swapped out, huge, bound to a NUMA node. Rollback finds what is private.

import { assertEquals, assertGreater } from "@std/assert";
import { GuestMemoryManager } from "membacking";
import { adviseHost } from "../../ffi/os/advise.ts";
import { readProc, writeProc } from "../support/proc.ts";
import { testUnless } from "../support/require.ts";
import { PAGE, range } from "../support/units.ts";

const MIB = 2 ** 20;
const SIZE = 8 * MIB;
const MADV_PAGEOUT = 21;
const SHMEM_THP = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/** A swap file of 32 MiB, until disposed. Throws where there can be none. */
function swapFile(): Disposable {
  const path = Deno.makeTempFileSync();
  const run = (command: string, ...args: string[]) => {
    const { success, stderr } = new Deno.Command(command, { args: [...args, path] }).outputSync();
    if (!success) throw new Error(`${command}: ${new TextDecoder().decode(stderr).trim()}`);
  };
  try {
    // Written, since a swap file must have no holes.
    Deno.writeFileSync(path, new Uint8Array(32 * MIB), { mode: 0o600 });
    run("mkswap");
    run("swapon");
  } catch (error) {
    Deno.removeSync(path);
    throw error;
  }
  return {
    [Symbol.dispose]() {
      run("swapoff");
      Deno.removeSync(path);
    },
  };
}

/** Has files in memory take huge pages where that is asked for, until disposed. Throws where that is not to be had. */
function hugeShmem(): Disposable {
  const before = /\[(\w+)\]/.exec(readProc(SHMEM_THP))?.[1] ?? "never";
  writeProc(SHMEM_THP, "advise");
  return { [Symbol.dispose]: () => writeProc(SHMEM_THP, before) };
}

function lacking(attempt: () => Disposable): string | undefined {
  try {
    attempt()[Symbol.dispose]();
    return undefined;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

function existing(path: string): string | undefined {
  return lacking(() => {
    readProc(path);
    return { [Symbol.dispose]() {} };
  });
}

/** Kilobytes of a line of /proc/self/status or smaps, all of them added up. */
function kilobytes(file: string, what: string): number {
  return [...readProc(file).matchAll(new RegExp(`^${what}:\\s+(\\d+) kB`, "gm"))]
    .reduce((sum, [, count]) => sum + Number(count), 0);
}

/** Writes every third page of RAM, and returns how many those are. */
function scatter(guest: GuestMemoryManager, value: number): number {
  let count = 0;
  for (let gpa = 0; gpa < SIZE; gpa += 3 * PAGE, count++) guest.memory.writeUint32(gpa, value);
  return count;
}

/** The words that every page of RAM begins with, each once. */
function words(guest: GuestMemoryManager): number[] {
  const found = new Set<number>();
  for (let gpa = 0; gpa < SIZE; gpa += PAGE) found.add(guest.memory.readUint32(gpa));
  return [...found].sort((a, b) => a - b);
}

testUnless(lacking(swapFile), "rollback finds pages that were written and then swapped out", () => {
  using _swap = swapFile();
  using guest = GuestMemoryManager.create({ maxAddress: SIZE, ram: [{ ranges: [range(0, SIZE)] }] });
  guest.memory.fill(0, SIZE, 1);
  using _template = guest.freeze();
  for (let round = 0; round < 3; round++) {
    const written = scatter(guest, 2);
    const before = kilobytes("/proc/self/status", "VmSwap");
    adviseHost(guest.memory.hostAddress(0, SIZE), SIZE, MADV_PAGEOUT);
    assertGreater(kilobytes("/proc/self/status", "VmSwap"), before + written * 2, "most of them are swapped out");
    assertEquals(guest.rollback().count, written);
    assertEquals(words(guest), [0x0101_0101]);
  }
});

testUnless(
  lacking(hugeShmem),
  "rollback gives back the pages that were written over a file of huge pages, and no others",
  () => {
    using _huge = hugeShmem();
    using guest = GuestMemoryManager.create({ maxAddress: SIZE, ram: [{ ranges: [range(0, SIZE)] }] });
    guest.memory.fill(0, SIZE, 1);
    assertGreater(kilobytes("/proc/self/smaps", "ShmemPmdMapped"), SIZE / 2048, "the file has huge pages");
    using template = guest.freeze();
    using clone = template.clone();
    for (let round = 0; round < 3; round++) {
      const written = scatter(guest, 2);
      assertEquals(scatter(clone, 3), written);
      assertEquals(words(clone), [3, 0x0101_0101]);
      assertEquals([guest.rollback().count, clone.rollback().count], [written, written]);
      assertEquals([words(guest), words(clone)], [[0x0101_0101], [0x0101_0101]]);
    }
  },
);

/** What the kernel says of where the memory at GPA 0 may come from. */
function numaPolicy(guest: GuestMemoryManager): string | undefined {
  const at = guest.memory.hostAddress(0, PAGE).toString(16);
  return readProc("/proc/self/numa_maps").split("\n").find((line) => line.startsWith(at))?.split(" ")[1];
}

testUnless(
  existing("/proc/self/numa_maps"),
  "memory stays bound to its NUMA node when it is frozen, cloned, rolled back and thawed",
  () => {
    using guest = GuestMemoryManager.create({
      maxAddress: SIZE,
      ram: [{ ranges: [range(0, SIZE)], hostNumaNode: 0 }],
    });
    guest.memory.fill(0, SIZE, 1);
    const policies = [numaPolicy(guest)];
    {
      using template = guest.freeze();
      policies.push(numaPolicy(guest));
      using clone = template.clone();
      scatter(clone, 2);
      policies.push(numaPolicy(clone));
      scatter(guest, 2);
      guest.rollback();
      policies.push(numaPolicy(guest));
    }
    guest.thaw();
    policies.push(numaPolicy(guest));
    assertEquals(policies, Array(5).fill("bind:0"));
  },
);
