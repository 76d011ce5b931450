import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import fc from "fast-check";
import { drawMemoryMap, drawMemoryMapSvg, GuestMemoryManager, MemoryRange, RegionManager } from "membacking";
import { serveInspector } from "membacking/inspector";
import { RecordingVa } from "membacking/testing";
import { Admission } from "../../src/inspector/admission.ts";
import { PAGE_FILES } from "../../src/inspector/page_files.ts";
import { OpenPage, send } from "./http.ts";
import { World } from "./world.ts";

const VIEW = { axis: "folded", layout: 0, from: 0, to: 0, start: 0, end: 0, columns: 100 };
const query = new URLSearchParams(Object.entries(VIEW).map(([key, value]) => [key, String(value)]));

Deno.test("nothing is served without the token", async () => {
  using world = new World(1);
  using inspector = serveInspector(world.manager);
  const { origin, pathname } = new URL(inspector.url);
  assert(/^\/[0-9a-f]{32}\/$/.test(pathname), pathname);
  const wrong = pathname.replace(/[0-9a-f]/, (digit) => digit === "0" ? "1" : "0");
  for (
    const path of [
      "/",
      "/app.js",
      "/events",
      wrong,
      `${wrong}events`,
      `${wrong}view?${query}`,
      pathname.slice(0, -2) + "/",
      `/${pathname}`,
    ]
  ) {
    const { status, body } = await send(`${origin}${path}`);
    assertEquals([status, body], [404, "Nothing is here without the token"], path);
  }
  assertEquals((await send(inspector.url)).status, 200);
  using other = serveInspector(world.manager);
  assert(new URL(other.url).pathname !== pathname, "two inspectors have one token");
});

Deno.test("a request under another host's name is refused, so that no name of an attacker's can lead here", async () => {
  using world = new World(1);
  using inspector = serveInspector(world.manager);
  const { port } = new URL(inspector.url);
  for (const host of ["evil.example", `evil.example:${port}`, "127.0.0.1.evil.example", "localhost.", "", "10.0.0.1"]) {
    assertEquals((await send(inspector.url, { Host: host })).status, 403, host);
  }
  // The port is that of a tunnel, often.
  for (const host of [`localhost:${port}`, "LOCALHOST:8080", "127.0.0.1:8080", "[::1]:8080"]) {
    assertEquals((await send(inspector.url, { Host: host })).status, 200, host);
  }
});

Deno.test("an inspector on all addresses of its host is found under each of them, and under no name", () => {
  const status = (hostname: string, host: string) => {
    const admission = new Admission(hostname);
    const url = `http://${host}/${admission.token}/about`;
    const answer = admission.check({ method: "GET", url, headers: new Headers({ host }) });
    return typeof answer === "string" ? answer : answer.status;
  };
  for (const host of ["10.1.2.3:80", "192.168.0.1", "[fe80::1]:8000", "localhost:1"]) {
    assertEquals(status("0.0.0.0", host), "about", host);
    assertEquals(status("::", host), "about", host);
    if (!host.startsWith("localhost")) assertEquals(status("127.0.0.1", host), 403, host);
  }
  for (const host of ["evil.example", "10.1.2.3.evil.example:80", "10.1.2"]) {
    assertEquals(status("0.0.0.0", host), 403, host);
  }
  assertEquals(status("10.1.2.3", "10.1.2.3:80"), "about");
  assertEquals(status("10.1.2.3", "10.1.2.4:80"), 403);
  assertEquals(status("vmhost.example", "VMHOST.example:80"), "about");
});

Deno.test("a request for what is no URL is refused, whatever its Host header says", () => {
  const admission = new Admission("localhost");
  for (const url of ["http://[::1", "http://localhost:99999999/x", "", "x"]) {
    const answer = admission.check({ method: "GET", url, headers: new Headers({ host: "localhost:1" }) });
    assertEquals(typeof answer === "string" ? answer : answer.status, 404, url);
  }
});

Deno.test("a request by another page is refused, even with the token", async () => {
  using world = new World(1);
  using inspector = serveInspector(world.manager);
  const view = `${inspector.url}view?${query}`;
  const { origin, host } = new URL(inspector.url);
  for (const other of ["http://evil.example", "null", `https://${host}`, "http://localhost:1", "file://"]) {
    assertEquals((await send(view, { Origin: other })).status, 403, other);
  }
  assertEquals((await send(view, { Origin: origin })).status, 200);
  for (const site of ["cross-site", "same-site", "nonsense"]) {
    assertEquals((await send(view, { "Sec-Fetch-Site": site, "Sec-Fetch-Mode": "cors" })).status, 403, site);
  }
  assertEquals((await send(view, { "Sec-Fetch-Site": "same-origin" })).status, 200);
  // A link to the page may be followed; putting it into a frame is another matter.
  const visit = { "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate" };
  assertEquals((await send(inspector.url, { ...visit, "Sec-Fetch-Dest": "document" })).status, 200);
  assertEquals((await send(inspector.url, { ...visit, "Sec-Fetch-Dest": "iframe" })).status, 403);
});

Deno.test("the inspector is read-only", async () => {
  using world = new World(1);
  using inspector = serveInspector(world.manager);
  for (const method of ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]) {
    for (const path of ["", "view", "events"]) {
      assertEquals((await send(`${inspector.url}${path}`, {}, method)).status, 405, `${method} ${path}`);
    }
  }
});

Deno.test("every answer forbids scripts, frames and requests to elsewhere, and the page needs none", async () => {
  using world = new World(1);
  using inspector = serveInspector(world.manager);
  for (const path of [...PAGE_FILES.keys(), `view?${query}`, "nothing"]) {
    const { headers } = await send(`${inspector.url}${path}`);
    const policy = headers.get("content-security-policy") ?? "";
    for (const part of ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"]) {
      assert(policy.includes(part), `${path}: ${policy}`);
    }
    assertEquals(headers.get("x-content-type-options"), "nosniff");
    assertEquals(headers.get("referrer-policy"), "no-referrer");
    assertEquals(headers.get("cache-control"), "no-store");
  }
  for (const [path, { text }] of PAGE_FILES) {
    assert(!/https?:\/\/|\/\/[a-z]+\.[a-z]/i.test(text), `${path} names another host`);
    assert(
      !/innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function/.test(text),
      `${path} makes markup`,
    );
  }
});

Deno.test("whatever is asked, the answer is an answer or a refusal, and the map is as it was", async () => {
  using world = new World(3);
  for (let i = 0; i < 30; i++) world.step();
  using inspector = serveInspector(world.manager, { since: "start" });
  const before = JSON.stringify(world.manager.inspect());
  const value = fc.oneof(
    fc.string(),
    fc.double().map(String),
    fc.integer().map(String),
    fc.constantFrom("-1", "1e308", "", "null"),
  );
  const questions = fc.record({
    name: fc.constantFrom(
      "view",
      "about",
      "find",
      "requests",
      "compare",
      "title",
      "heat",
      "..",
      "__proto__",
      "map.json",
      "map.svg",
      "constructor",
    ),
    query: fc.dictionary(
      fc.constantFrom(
        "at",
        "with",
        "axis",
        "layout",
        "from",
        "to",
        "start",
        "end",
        "columns",
        "gpa",
        "q",
        "count",
        "heat",
      ),
      value,
    ),
  });
  await fc.assert(
    fc.asyncProperty(questions, async ({ name, query }) => {
      const response = await fetch(`${inspector.url}${name}?${new URLSearchParams(query)}`);
      await response.body?.cancel();
      assert([200, 400, 404].includes(response.status), `${response.status}`);
    }),
    { numRuns: 300 },
  );
  assertEquals(JSON.stringify(world.manager.inspect()), before);
});

/** A map with one region, and a request that always does something. */
function toggled(): { manager: RegionManager; toggle: () => void } & Disposable {
  const manager = new RegionManager(new RecordingVa(0x10_0000));
  const region = manager.newRegion({ name: "lamp", range: new MemoryRange(0, 0x1000), priority: 0 });
  return {
    manager,
    toggle: () => region.mapParams === null ? region.map() : region.unmap(),
    [Symbol.dispose]: () => manager[Symbol.dispose](),
  };
}

async function rowsOf(page: OpenPage): Promise<{ name: string | null }[]> {
  return (await page.ask("requests", { from: 0, count: 500 })).rows as { name: string | null }[];
}

Deno.test("requests are recorded while a page is open, and not otherwise", async () => {
  using map = toggled();
  using inspector = serveInspector(map.manager);
  map.toggle();
  const page = await OpenPage.open(inspector.url);
  await inspector.opened;
  assertEquals((await rowsOf(page)).map(({ name }) => name), [null]);
  map.toggle();
  assert(await page.news());
  assertEquals((await rowsOf(page)).length, 2);
  await page[Symbol.asyncDispose]();

  const isWatching = async () => (await (await fetch(`${inspector.url}requests?from=0&count=1`)).json()).watching;
  while (await isWatching()) await new Promise((resolve) => setTimeout(resolve, 5));
  map.toggle();
  await using again = await OpenPage.open(inspector.url);
  // What came in between was not seen, which is said.
  assertEquals((await rowsOf(again)).map(({ name }) => name === null), [true, false, true]);
});

Deno.test("requests are recorded from the start where that is asked for", async () => {
  using map = toggled();
  using inspector = serveInspector(map.manager, { since: "start" });
  for (let i = 0; i < 5; i++) map.toggle();
  await using page = await OpenPage.open(inspector.url);
  assertEquals((await rowsOf(page)).map(({ name }) => name === null), [true, false, false, false, false, false]);
});

Deno.test("the past is still there when the manager is gone", async () => {
  const map = toggled();
  using inspector = serveInspector(map.manager, { since: "start" });
  map.toggle();
  map.manager[Symbol.dispose]();
  await using page = await OpenPage.open(inspector.url);
  const view = await page.ask("view", { ...VIEW, at: 2 });
  assertEquals(view.gone, true);
  assertEquals((view.lanes as { pieces: unknown[] }[])[0]?.pieces, [[0, 0x1000, "hole", "lamp", 1]]);
});

Deno.test("a disposed inspector serves nothing, lets its pages go, and its port with them", async () => {
  using map = toggled();
  const inspector = serveInspector(map.manager);
  const page = await OpenPage.open(inspector.url);
  inspector[Symbol.dispose]();
  inspector[Symbol.dispose]();
  assertEquals(await page.news(), false);
  await assertRejects(() => fetch(inspector.url));
  using next = serveInspector(map.manager, { port: Number(new URL(inspector.url).port) });
  assertEquals((await send(next.url)).status, 200);
});

Deno.test("the map can be saved as it is, and as it was", async () => {
  using world = new World(7);
  using inspector = serveInspector(world.manager, { since: "start" });
  for (let i = 0; i < 20; i++) world.step();
  const { last } = await (await fetch(`${inspector.url}requests?from=0&count=0`)).json();
  const then = world.manager.inspect();
  for (let i = 0; i < 20; i++) world.step();
  const now = world.manager.inspect();
  for (const [at, map] of [["", now], [`?at=${last}`, then]] as const) {
    const saved = async (name: string) => await (await fetch(`${inspector.url}${name}${at}`)).text();
    assertEquals(JSON.parse(await saved("map.json")), JSON.parse(JSON.stringify(map)));
    assertEquals(await saved("map.txt"), `${drawMemoryMap(map)}\n`);
    assertEquals(await saved("map.svg"), drawMemoryMapSvg(map));
  }
  const { status, headers } = await send(`${inspector.url}map.svg`);
  assertEquals([status, headers.get("content-disposition")], [200, 'attachment; filename="map.svg"']);
  assertEquals((await send(`${inspector.url}map.svg?at=1000000`)).status, 400);
});

Deno.test("serveInspector() refuses what it cannot serve", () => {
  using map = toggled();
  // @ts-expect-error: no manager
  assertThrows(() => serveInspector({}), TypeError, "A GuestMemoryManager or a RegionManager is needed");
  assertThrows(() => serveInspector(map.manager, { history: NaN }), RangeError, "must be a number of bytes");
  assertThrows(() => serveInspector(map.manager, { history: -1 }), RangeError, "must be a number of bytes");
  // @ts-expect-error: no such word
  assertThrows(() => serveInspector(map.manager, { since: "never" }), TypeError, 'must be "open" or "start"');
});

Deno.test("names of regions and files go out as JSON text, whatever they are", async () => {
  const name = `"><img src=x onerror=alert(1)>\u2028</script>`;
  using guest = GuestMemoryManager.create({
    maxAddress: 0x100_0000,
    ram: [{ name, ranges: [new MemoryRange(0, 0x80_0000)] }],
  });
  using inspector = serveInspector(guest, { title: name });
  const { headers, body } = await send(`${inspector.url}view?${query}`);
  assertEquals(headers.get("content-type"), "application/json; charset=utf-8");
  assert(body.includes(JSON.stringify(name).slice(1, -1)));
  // The page itself is the same for everybody: nothing is put into it.
  assertEquals((await send(inspector.url)).body, PAGE_FILES.get("")?.text);
});
