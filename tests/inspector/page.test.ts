/// <reference lib="dom" />
import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { GuestMemoryManager, Mappable, MemoryRange, RegionManager } from "membacking";
import { serveInspector } from "membacking/inspector";
import { RecordingPartition, RecordingVa } from "membacking/testing";
import { browserTest, closeBrowser, type Tab } from "./browser.ts";
import { bounds, pagesDrawn, pagesSeen, World } from "./world.ts";

const LOOKS: Readonly<Record<string, string>> = {
  "writable": "writable",
  "read-only": "read-only",
  "hole: nothing behind it": "hole",
};

/** What the page says the guest sees, page by page. */
async function seenIn(tab: Tab): Promise<string[]> {
  const rows = await tab.rows("guest sees");
  return pagesDrawn(rows.map(([range, meaning, text]) => [...bounds(range), LOOKS[meaning] ?? meaning, text]));
}

browserTest(
  "the page shows what inspect() says after each of a hundred random requests, and what it said then",
  async (open) => {
    using world = new World(11);
    for (let i = 0; i < 12; i++) world.step();
    using inspector = serveInspector(world.manager);
    const tab = await open(inspector.url);
    await inspector.opened;
    await tab.shows(1);
    // To scale, so that each of the 64 pages is wide enough to be told apart; as a table, which can be read.
    await tab.page.keyboard.press("f");
    await tab.page.keyboard.press("0");
    await tab.page.keyboard.press("t");
    const said: string[][] = [[], pagesSeen(world.manager.inspect())];
    const seen = { number: 1 };
    using _counted = world.manager.watchRequests(() => {
      seen.number++;
    });
    for (let i = 0; i < 100; i++) {
      const before = seen.number;
      while (seen.number === before) world.step();
      said[seen.number] = pagesSeen(world.manager.inspect());
      await tab.shows(seen.number);
      assertEquals(await seenIn(tab), said[seen.number], `after request ${seen.number}`);
    }
    for (let number = seen.number - 1; number > seen.number - 60; number--) {
      await tab.page.keyboard.press("[");
      await tab.shows(number);
      if (said[number] !== undefined) assertEquals(await seenIn(tab), said[number], `back at request ${number}`);
    }
    await tab.page.keyboard.press("l");
    await tab.shows(seen.number);
    assertEquals(await seenIn(tab), said[seen.number]);
    assertEquals([tab.complaints, tab.strangers], [[], []]);
  },
);

/** A PC with devices, and an inspector. */
function pc(name = "ram") {
  const stack = new DisposableStack();
  const guest = stack.use(GuestMemoryManager.create({
    maxAddress: 0x100_0000_0000,
    ram: [{ name, ranges: [new MemoryRange(0, 0xc000_0000), new MemoryRange(0x1_0000_0000, 0x2_0000_0000)] }],
    x86Legacy: true,
  }));
  guest.attachPartition(new RecordingPartition({ name: "vm" }));
  const pixels = stack.use(Mappable.memfd("pixels", 0x100_0000));
  const bar = guest.newDeviceMemory("frame buffer", 0x100_0000);
  bar.map({ offset: 0, mappable: pixels, length: 0x100_0000, writable: true });
  bar.mapToGuest(0xfd00_0000, true);
  const inspector = stack.use(serveInspector(guest, { title: `guest of ${name}` }));
  return { guest, bar, inspector, [Symbol.dispose]: () => stack.dispose() };
}

/** What the panel beside the strips says is at the cursor. */
async function atCursor(tab: Tab): Promise<string> {
  await tab.page.waitForFunction(() => document.querySelector("#about .region, #about p.faint") !== null);
  return await tab.page.innerText("#about");
}

/** The window on the axis, in parts of it. */
async function brush(tab: Tab): Promise<[left: number, width: number]> {
  // What is drawn next is drawn by now.
  await tab.page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
  return await tab.page.$eval("#brush", ({ style }) => [Number.parseFloat(style.left), Number.parseFloat(style.width)]);
}

/** Waits until less than half of the axis is on the screen. */
async function zoomed(tab: Tab): Promise<void> {
  await tab.page.waitForFunction(() => {
    const brush = document.querySelector<HTMLElement>("#brush");
    return brush !== null && Number.parseFloat(brush.style.width) < 50;
  });
}

browserTest("search finds addresses, regions and files, and goes there", async (open) => {
  using machine = pc();
  const tab = await open(machine.inspector.url);
  await tab.shows(1);
  for (const [query, expected] of [["0xfd000123", "frame buffer"], ["pixel", "frame buffer"], ["ram f", "ram f0000"]]) {
    await tab.page.keyboard.press("0");
    await tab.page.keyboard.press("/");
    await tab.page.keyboard.type(query ?? "");
    await tab.page.waitForSelector("#found:not([hidden])");
    await tab.page.keyboard.press("Enter");
    await tab.page.waitForFunction(
      (text) => document.querySelector("#about .seen .name")?.textContent === text,
      expected,
    );
    await zoomed(tab);
  }
  assertEquals(tab.complaints, []);
});

browserTest("zoom goes from all of 2^52 down to a page, by key and by wheel, and back", async (open) => {
  using machine = pc();
  const tab = await open(machine.inspector.url);
  await tab.shows(1);
  assertEquals(await brush(tab), [0, 100]);
  for (let i = 0; i < 60; i++) await tab.page.keyboard.press("+");
  await tab.page.waitForFunction(() => document.querySelector("#rows") !== null);
  await tab.page.keyboard.press("t");
  await tab.page.waitForFunction(() => document.querySelectorAll("#rows tbody tr").length > 0);
  // No window is shorter than a page, and that of this one is not much longer.
  const visible = await tab.page.evaluate(() => Number(document.body.dataset.bytes));
  assert(visible >= 4096 && visible < 3 * 4096, `${visible} bytes are on the screen`);
  await tab.page.keyboard.press("t");
  await tab.page.keyboard.press("Escape");
  assertEquals(await brush(tab), [0, 100]);
  const box = await tab.page.locator("#strips").boundingBox();
  assert(box !== null);
  await tab.page.mouse.move(box.x + box.width / 2, box.y + 80);
  for (let i = 0; i < 5; i++) await tab.page.mouse.wheel(0, -200);
  const [, zoomed] = await brush(tab);
  assert(zoomed < 50, `${zoomed} %`);
  await tab.page.mouse.wheel(0, 5000);
  assertEquals((await brush(tab))[1], 100);
  // To scale there is more of it than guest memory: all that a guest could address.
  await tab.page.keyboard.press("f");
  // A wheel that comes late, as where much is going on, may have gone in again between two keys.
  const bytes = () => tab.page.evaluate(() => Number(document.body.dataset.bytes));
  for (let i = 0; i < 100 && await bytes() !== 2 ** 52; i++) await tab.page.keyboard.press("-");
  await tab.page.waitForFunction(() => Number(document.body.dataset.bytes) === 2 ** 52);
  assertEquals(tab.complaints, []);
});

browserTest("arrow keys walk over edges and strips, and what is there is said", async (open) => {
  using machine = pc();
  const tab = await open(machine.inspector.url);
  await tab.shows(1);
  await tab.page.focus("#strips");
  assert((await atCursor(tab)).includes("seen, read-write"));
  for (const address of ["0xa0000", "0xc0000", "0xc4000"]) {
    await tab.page.keyboard.press("ArrowRight");
    await tab.page.waitForFunction(
      (at) => document.querySelector("#about .address")?.textContent?.startsWith(at),
      address,
    );
  }
  await tab.page.keyboard.press("ArrowDown");
  await tab.page.waitForFunction(() => document.querySelector("#spoken")?.textContent?.startsWith("255: "));
  const spoken = await tab.page.textContent("#spoken");
  assert(spoken?.includes("0xc4000: ram c4000, seen, read-write"), spoken ?? "");
  for (let i = 0; i < 10; i++) await tab.page.keyboard.press("ArrowDown");
  await tab.page.waitForFunction(() =>
    document.querySelector("#spoken")?.textContent?.startsWith("vm: slot, read-write")
  );
  assertEquals(tab.complaints, []);
});

browserTest("hovering says which region, file and range is there, and a click who hides what", async (open) => {
  using machine = pc();
  machine.bar.mapToGuest(0x10_0000, true);
  const tab = await open(machine.inspector.url);
  await tab.shows(1);
  await tab.page.keyboard.press("/");
  await tab.page.keyboard.type("frame");
  await tab.page.waitForSelector("#found:not([hidden])");
  await tab.page.keyboard.press("Enter");
  await tab.page.waitForFunction(() => document.querySelectorAll("#about .region").length === 2);
  const about = await atCursor(tab);
  assert(about.includes('hidden by "ram" (priority 255)'), about);
  assert(about.includes('memfd "pixels"'), about);
  await tab.page.waitForFunction(() =>
    Number.parseFloat(document.querySelector<HTMLElement>("#brush")?.style.width ?? "") < 50
  );
  const box = await tab.page.locator("#strips").boundingBox();
  assert(box !== null);
  await tab.page.mouse.move(box.x + box.width / 2, box.y + 70);
  const tip = await tab.page.innerText("#tip");
  assert(tip.includes("ram") && tip.includes("0x100000-") && tip.includes("guest sees: writable"), tip);
  // Once the pointer rests, all that is there, with who hides it.
  await tab.page.waitForFunction(() => document.querySelectorAll("#tip .more").length === 2);
  const more = await tab.page.innerText("#tip");
  assert(more.includes('memfd "pixels" +0x') && more.includes('hidden by "ram" (priority 255)'), more);
  assertEquals(tab.complaints, []);
});

browserTest("two points of the past are compared, with what differs marked and listed", async (open) => {
  using machine = pc();
  const tab = await open(machine.inspector.url);
  await tab.shows(1);
  machine.guest.setRamVisibility(new MemoryRange(0xf0000, 0x10_0000), "read-only");
  machine.bar.mapToGuest(0xe000_0000, true);
  await tab.page.waitForFunction(() => Number(document.body.dataset.at) >= 3);
  await tab.page.keyboard.press("[");
  await tab.page.keyboard.press("[");
  await tab.shows(1);
  await tab.page.keyboard.press("c");
  await tab.page.keyboard.press("l");
  await tab.page.waitForFunction(() => document.querySelectorAll("#differences ol li").length === 3);
  const items = await tab.page.$$eval("#differences ol li", (items) => items.map((item) => item.textContent));
  assert(items[0]?.startsWith("w0xf0000-0x100000"), items[0] ?? "");
  assert(items[1]?.startsWith("+0xe0000000-0xe1000000"), items[1] ?? "");
  assert(items[2]?.startsWith("−0xfd000000-0xfe000000"), items[2] ?? "");
  await tab.page.keyboard.press("t");
  // The strips are asked for on their own.
  await tab.page.waitForFunction(() =>
    [...document.querySelectorAll("#rows tr")].filter((row) => row.firstChild?.textContent === "differs").length === 3
  );
  assertEquals((await tab.rows("differs")).map(([range, , sign]) => [range, sign]), [
    ["0xf0000-0x100000", "w"],
    ["0xe0000000-0xe1000000", "+"],
    ["0xfd000000-0xfe000000", "−"],
  ]);
  const was = (await tab.rows("guest saw")).map(([range, meaning]) => `${range} ${meaning}`);
  assert(was.includes("0xf0000-0x100000 writable") && was.includes("0xfd000000-0xfe000000 writable"), was.join("\n"));
  await tab.page.keyboard.press("t");
  await tab.page.keyboard.press("n");
  await tab.page.keyboard.press("n");
  await tab.page.waitForFunction(() =>
    document.querySelector("#differences .current .address")?.textContent === "0xe0000000-0xe1000000"
  );
  await tab.page.waitForFunction(() =>
    document.querySelector("#about .address")?.textContent?.startsWith("0xe0000000")
  );
  assertEquals(tab.complaints, []);
});

browserTest(
  "the slider goes through the past, which can be played, and what is forgotten gives way to the present",
  async (open) => {
    const manager = new RegionManager(new RecordingVa(0x10_0000));
    using _manager = manager;
    const lamp = manager.newRegion({ name: "lamp", range: new MemoryRange(0, 0x1000), priority: 0 });
    using inspector = serveInspector(manager, { history: 40_000 });
    const tab = await open(inspector.url);
    await tab.shows(1);
    const toggle = () => lamp.mapParams === null ? lamp.map() : lamp.unmap();
    for (let i = 0; i < 6; i++) toggle();
    await tab.shows(7);
    await tab.page.keyboard.press("t");
    await tab.page.locator("#slider").fill("3");
    await tab.shows(3);
    assertEquals(await tab.rows("guest sees"), []);
    await tab.page.locator("#slider").fill("2");
    await tab.shows(2);
    assertEquals((await tab.rows("guest sees")).map(([, meaning, text]) => [meaning, text]), [[
      "hole: nothing behind it",
      "lamp",
    ]]);
    assertEquals(await tab.page.innerText("#request .name"), "map");
    await tab.page.keyboard.press(" ");
    await tab.shows(7);
    await tab.page.locator("#slider").fill("2");
    await tab.shows(2);
    for (let i = 0; i < 100; i++) toggle();
    await tab.shows(107);
    await tab.page.waitForFunction(() => document.querySelector("#moment")?.textContent === "live");
    assertEquals(tab.complaints.filter((complaint) => !complaint.includes("400")), []);
  },
);

browserTest("a page that is loaded again looks where it looked, and when", async (open) => {
  using machine = pc();
  const tab = await open(machine.inspector.url);
  await tab.shows(1);
  for (const to of [0xe000_0000, 0xe100_0000]) machine.bar.mapToGuest(to, true);
  await tab.shows(3);
  await tab.page.keyboard.press("[");
  await tab.page.keyboard.press("c");
  await tab.page.keyboard.press("[");
  await tab.page.keyboard.press("f");
  await tab.page.keyboard.press("/");
  await tab.page.keyboard.type("ram f0000");
  await tab.page.keyboard.press("Enter");
  // The address follows a moment later.
  await tab.page.waitForFunction(() => {
    const said = new URLSearchParams(location.hash.slice(1));
    return said.get("at") === "1" && said.has("end") && Number(said.get("end")) < 0x11_0000;
  });
  const bytes = () => tab.page.evaluate(() => Number(document.body.dataset.bytes));
  const before = await bytes();
  await tab.page.reload();
  await tab.shows(1);
  await tab.page.waitForFunction(() => document.querySelector("#moment")?.textContent?.includes("after request 1"));
  assertEquals(await tab.page.innerText("#other"), "compared with request 2");
  assertEquals(await tab.page.getAttribute("#folded", "aria-pressed"), "false");
  await tab.page.waitForFunction(
    (before) => Math.abs(Number(document.body.dataset.bytes) - before) < before / 4,
    before,
  );
  assertEquals(tab.complaints, []);
});

browserTest("no name of a region, file, target or guest is ever markup", async (open) => {
  const evil = `<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>&lt;b>"'`;
  const manager = new RegionManager(new RecordingVa(0x10_0000));
  using _manager = manager;
  manager.addPartition(new RecordingPartition({ name: evil }));
  using file = Mappable.memfd(evil, 0x10_0000);
  const region = manager.newRegion({ name: evil, range: new MemoryRange(0, 0x8000), priority: 0, type: "device" });
  using inspector = serveInspector(manager, { title: evil });
  const tab = await open(inspector.url);
  await tab.shows(1);
  region.addMapping({ rangeInRegion: new MemoryRange(0, 0x4000), mappable: file });
  region.map();
  await tab.page.waitForFunction(() => Number(document.body.dataset.at) >= 3);
  await tab.page.keyboard.press("/");
  await tab.page.keyboard.type("img");
  await tab.page.waitForSelector("#found li");
  await tab.page.keyboard.press("Enter");
  // Keys go to the search until what it found is gone to.
  await tab.page.waitForFunction(() =>
    document.activeElement?.id === "strips" && document.querySelector("#about .region") !== null
  );
  await tab.page.keyboard.press("c");
  await tab.page.keyboard.press("[");
  await tab.page.keyboard.press("[");
  await tab.page.waitForSelector("#differences li");
  await tab.page.keyboard.press("t");
  await tab.page.waitForSelector("#rows tbody tr");
  assertEquals(await tab.page.title(), evil);
  assertEquals(await tab.page.$$eval("img, b, script", (made) => made.map(({ outerHTML }) => outerHTML)), [
    `<script type="module" src="app.js"></script>`,
  ]);
  assert((await tab.page.innerText("#about")).includes(evil));
  assertEquals(tab.complaints, []);
});

browserTest(
  "the page is light or dark as the reader has it, and each look has a pattern without colours",
  async (open) => {
    using machine = pc();
    machine.guest.setRamVisibility(new MemoryRange(0xf0000, 0x10_0000), "read-only");
    machine.guest.setRamVisibility(new MemoryRange(0xa0000, 0xc0000), "unmapped");
    const tab = await open(machine.inspector.url, { colorScheme: "light" });
    await tab.shows(1);
    const ground = () => tab.page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const [light, lightStrips] = [await ground(), await tab.strips()];
    await tab.page.emulateMedia({ colorScheme: "dark" });
    await tab.page.waitForFunction((was) => getComputedStyle(document.body).backgroundColor !== was, light);
    await brush(tab);
    assertNotEquals(await tab.strips(), lightStrips);
    // Drawn in one colour, no two looks are the same picture.
    await tab.page.keyboard.press("?");
    const pictures = await tab.page.$$eval("#keys canvas", (canvases) =>
      canvases.map((canvas) => {
        const { data } = (canvas as HTMLCanvasElement).getContext("2d")!.getImageData(0, 0, 44, 18);
        return Array.from({ length: data.length / 4 }, (_, i) => data[4 * i + 3]! > 60 ? "#" : ".").join("");
      }));
    assert(pictures.length > 10);
    assertEquals(new Set(pictures).size, pictures.length);
    assertEquals(tab.complaints, []);
  },
);

Deno.test({ name: "the browser of these tests is closed", fn: closeBrowser });
