import { assertEquals, assertThrows } from "@std/assert";
import {
  GuestMemoryError,
  type Mappable,
  MappingError,
  type MemoryPolicy,
  RegionManager,
  VaMapper,
  type VaTarget,
} from "membacking";
import { kvmTest } from "../require.ts";
import { assertAllOrNothing, runChild } from "./child.ts";
import type { Attempt } from "./children/attempt.ts";
import { range, stamp, stampedFile, stamps } from "./machine.ts";

/** Real host memory that refuses to be mapped as often as told. */
class Refusing implements VaTarget<Mappable> {
  refusals = 0;
  readonly #va: VaMapper;

  constructor(va: VaMapper) {
    this.#va = va;
  }

  get base(): number {
    return this.#va.base;
  }

  get length(): number {
    return this.#va.length;
  }

  map(
    ...args: [number, number, Mappable | null, number, boolean, MemoryPolicy | undefined]
  ): void {
    if (this.refusals-- > 0) throw new Error("refused");
    this.#va.map(...args);
  }

  protect(start: number, end: number, writable: boolean): void {
    this.#va.protect(start, end, writable);
  }

  remove(start: number, end: number): void {
    this.#va.remove(start, end);
  }

  view(start: number, end: number): ArrayBuffer {
    return this.#va.view(start, end);
  }
}

Deno.test("where an undo failed, memory cannot be accessed, and all around it can", () => {
  using va = VaMapper.reserve(2 ** 21);
  const host = new Refusing(va);
  using regions = new RegionManager(host);
  using file = stampedFile(1, 0x8000);
  using other = stampedFile(2, 0x8000);
  using region = regions.newRegion({ name: "ram", range: range(0, 0x8000), priority: 0 });
  region.addMapping({ rangeInRegion: range(0, 0x8000), mappable: file });
  region.map();
  const replacement = { rangeInRegion: range(0x3000, 0x5000), mappable: other };
  host.refusals = 2;
  const error = assertThrows(() => region.addMapping(replacement), MappingError, "could not be undone");
  assertEquals(error.outOfStep.map(({ range }) => String(range)), ["0x3000-0x5000"]);
  const words = () =>
    Array.from({ length: 8 }, (_, page) => {
      try {
        return regions.memory.readUint32(page * 0x1000 + 0xffc);
      } catch (error) {
        return error instanceof GuestMemoryError ? error.kind : String(error);
      }
    });
  const lost = ["not-mapped", "not-mapped"];
  assertEquals(words(), [...stamps(1, 0, 3), ...lost, ...stamps(1, 5, 3)]);
  assertThrows(() => regions.memory.read(0x2000, 0x2000), GuestMemoryError, "nothing is mapped at 0x3000");
  regions.memory.fill(0x5000, 0x1000, 0);
  region.addMapping(replacement);
  assertEquals(words(), [...stamps(1, 0, 3), ...stamps(2, 0, 2), 0, ...stamps(1, 6, 2)]);
});

kvmTest("the kernel's own limit on mappings fails a request half-way, and no part of it stays", async () => {
  type What = "cover" | "replacement" | "removal" | "protection";
  const attempts = await runChild<Record<What, Attempt>>("few_mappings.ts", { fewMappings: true });
  for (const [what, attempt] of Object.entries(attempts)) {
    assertAllOrNothing(attempt, what);
    const { error } = attempt;
    const call = what === "protection" ? "mprotect" : "mmap";
    assertEquals([error?.name, error?.cause?.os, error?.outOfStep], ["MappingError", `${call} ENOMEM`, 0], what);
  }
  const { cover, replacement, removal, protection } = attempts;
  assertEquals(cover.before.guest.slice(0, 3), ["mmio", stamp(1, 0), stamp(1, 1)]);
  assertEquals(cover.finally.guest.slice(0, 4), ["mmio", stamp(2, 0), "mmio", stamp(2, 1)]);
  assertEquals(replacement.finally.guest.slice(20, 24), [stamp(1, 19), stamp(2, 0), stamp(1, 21), stamp(2, 0)]);
  assertEquals(removal.finally.guest.slice(20, 24), [stamp(1, 19), "fault", stamp(1, 21), "fault"]);
  assertEquals(protection.finally.guest, stamps(1, 0, 200));
  assertEquals(protection.finally.slots.filter((slot) => slot.includes(" ro ")).length, 100);
});
