import { assert, assertEquals } from "@std/assert";
import { GuestMemoryManager, MemoryRange, OsError, type Partition } from "membacking";
import { serveInspector } from "membacking/inspector";
import { residentPages } from "../../ffi/host/private_pages.ts";
import { testUnless } from "../support/require.ts";
import { PAGE } from "../support/units.ts";
import { OpenPage } from "./http.ts";

const LENGTH = 0x40_0000;
const VIEW = {
  axis: "straight",
  layout: 0,
  from: 0,
  to: LENGTH,
  start: 0,
  end: LENGTH,
  columns: LENGTH / PAGE,
  heat: 1,
};

/** RAM of ordinary pages: of huge ones more is in memory than was touched. */
function newGuest(): GuestMemoryManager {
  return GuestMemoryManager.create({
    maxAddress: LENGTH,
    ram: [{ ranges: [new MemoryRange(0, LENGTH)], transparentHugepages: false }],
  });
}

type Lanes = readonly { readonly key: string; readonly pieces: readonly [number, number, string, string][] }[];

/** The ranges of a lane of heat, and how hot they are. */
async function heat(page: OpenPage, lane: string): Promise<[start: number, end: number, share: string][]> {
  const { lanes } = await page.ask("view", VIEW);
  const pieces = (lanes as Lanes).find(({ key }) => key === lane)?.pieces ?? [];
  return pieces.map(([start, end, , share]) => [start, end, share]);
}

/** Asks whenever there is news, which is each second, until the answer is this one. */
async function becomes(page: OpenPage, lane: string, expected: [number, number, string][]): Promise<void> {
  let answer = await heat(page, lane);
  for (let looks = 0; looks < 30 && JSON.stringify(answer) !== JSON.stringify(expected); looks++) {
    await page.news();
    answer = await heat(page, lane);
  }
  assertEquals(answer, expected);
}

/** A partition that counts how often its log is switched. */
class Logging implements Partition {
  readonly name = "vm";
  readonly switched: boolean[] = [];
  mapRange(): void {}
  unmapRange(): void {}
  setDirtyLog(_range: MemoryRange, on: boolean): void {
    this.switched.push(on);
  }
  takeDirty(): void {}
}

Deno.test("heat shows the pages that are in memory, and those that were written since the last second", async () => {
  using guest = newGuest();
  guest.memory.fill(0x10_0000, 4 * PAGE, 1);
  guest.memory.fill(0x20_0000, PAGE, 1);
  using inspector = serveInspector(guest);
  await using page = await OpenPage.open(inspector.url);
  await becomes(page, "resident", [[0x10_0000, 0x10_4000, "1"], [0x20_0000, 0x20_1000, "1"]]);
  assertEquals(await heat(page, "written"), []);
  guest.memory.writeUint8(0x30_0000, 1);
  await becomes(page, "written", [[0x30_0000, 0x30_1000, "1"]]);
  assertEquals((await heat(page, "resident")).at(-1), [0x30_0000, 0x30_1000, "1"]);
  // A second later nobody has written it again.
  await becomes(page, "written", []);
});

Deno.test("writes are tracked while somebody looks at the heat, and no longer", async () => {
  using guest = newGuest();
  const vm = new Logging();
  using _attached = guest.attachPartition(vm);
  {
    using inspector = serveInspector(guest);
    await using page = await OpenPage.open(inspector.url);
    await page.ask("view", { ...VIEW, heat: 0 });
    assertEquals(vm.switched, []);
    await page.ask("view", VIEW);
    while (!vm.switched.includes(true)) await page.news();
  }
  while (!vm.switched.includes(false)) await new Promise((resolve) => setTimeout(resolve, 5));
});

Deno.test("a column of which a part is in memory is as hot as that part is large", async () => {
  using guest = newGuest();
  guest.memory.fill(0, LENGTH / 4, 1);
  guest.memory.fill(LENGTH / 2, LENGTH / 8, 1);
  using inspector = serveInspector(guest);
  await using page = await OpenPage.open(inspector.url);
  for (;;) {
    const { lanes } = await page.ask("view", { ...VIEW, columns: 2 });
    const pieces = (lanes as Lanes).find(({ key }) => key === "resident")?.pieces ?? [];
    if (pieces.length > 0) {
      assertEquals(pieces.map(([start, end, , share]) => [start, end, share]), [
        [0, LENGTH / 2, "0.5"],
        [LENGTH / 2, LENGTH, "0.25"],
      ]);
      break;
    }
    await page.news();
  }
});

/** Why the kernel cannot be asked by PAGEMAP_SCAN. */
const noScan = (() => {
  using guest = newGuest();
  try {
    residentPages(guest.regions.inspect().base, PAGE, "scan");
    return undefined;
  } catch (error) {
    return error instanceof OsError ? "this kernel has no PAGEMAP_SCAN, which came with Linux 6.7" : String(error);
  }
})();

for (const how of ["scan", "read"] as const) {
  testUnless(how === "scan" ? noScan : undefined, `residentPages() finds the pages that were touched (${how})`, () => {
    using guest = newGuest();
    const { base } = guest.regions.inspect();
    assertEquals(residentPages(base, LENGTH, how), []);
    guest.memory.fill(0x5000, 2 * PAGE, 1);
    const found = residentPages(base, LENGTH, how).map(({ start, end }) => [start - base, end - base]);
    assert(found.length > 0);
    // The kernel may map what lies around it as well.
    assert(found.some(([start = 0, end = 0]) => start <= 0x5000 && end >= 0x7000), JSON.stringify(found));
  });
}
