import { assertEquals } from "@std/assert";
import { GuestMemoryManager, MemoryRange, RegionManagerClient } from "membacking";
import { serveInspector } from "membacking/inspector";
import { OpenPage } from "./http.ts";

const VIEW = { axis: "straight", layout: 0, from: 0, to: 0x10_0000, start: 0, end: 0x10_0000, columns: 256 };

/** The lanes of locks and of clients: what they are called, and the ranges in them. */
async function holders(page: OpenPage, query: Record<string, string | number> = {}): Promise<[string, string[]][]> {
  const { lanes } = await page.ask("view", { ...VIEW, ...query });
  return (lanes as { kind: string; label: string; pieces: [number, number][] }[])
    .filter(({ kind }) => kind === "client" || kind === "locks")
    .map(({ label, pieces }) => [label, pieces.map(([start, end]) => String(new MemoryRange(start, end)))]);
}

Deno.test("clients are shown with their regions and locks, and locks as they were", async () => {
  using guest = GuestMemoryManager.create({ maxAddress: 0x10_0000, ram: [{ ranges: [new MemoryRange(0, 0x8_0000)] }] });
  using inspector = serveInspector(guest);
  await using page = await OpenPage.open(inspector.url);
  assertEquals(await holders(page), []);
  const { port1, port2 } = new MessageChannel();
  using _served = guest.regions.serve(port1);
  using client = await RegionManagerClient.connect(port2);
  using region = await client.newRegion({ name: "bar", range: new MemoryRange(0x8_0000, 0x9_0000), priority: 1 });
  await region.map();
  const lock = guest.memory.lock(new MemoryRange(0x1000, 0x3000));
  assertEquals(await holders(page), [["locked", ["0x1000-0x3000"]], ["client 1", ["0x80000-0x90000"]]]);
  await region.unmap();
  const { last } = await page.ask("requests", { from: 0, count: 0 });
  lock[Symbol.dispose]();
  assertEquals(await holders(page), [["client 1", ["0x80000-0x90000"]]]);
  assertEquals(await holders(page, { at: Number(last) }), [["locked", ["0x1000-0x3000"]]]);
});
