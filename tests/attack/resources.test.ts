import { assertEquals } from "@std/assert";
import type { Vma } from "../support/proc.ts";
import { reservations } from "./resources.ts";

const MIB = 2 ** 20;
const vma = (start: number, length: number, access: string): Vma => ({
  ...{ start: start * MIB, end: (start + length) * MIB, access, offset: 0, file: "" },
});

Deno.test("what malloc has not used of an arena is no reservation that was left, however round its length", () => {
  const arena = [vma(64, 24, "rw-p"), vma(88, 40, "---p")];
  assertEquals(reservations(arena), []);
});

Deno.test("a reservation beside an arena, or behind other memory, is one that was left", () => {
  const behindAnArena = vma(128, 16, "---p");
  const behindMemory = vma(208, 16, "---p");
  const mapped = [vma(64, 24, "rw-p"), vma(88, 40, "---p"), behindAnArena, vma(200, 8, "rw-p"), behindMemory];
  assertEquals(reservations(mapped), [behindAnArena, behindMemory]);
});
