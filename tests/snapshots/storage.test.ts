import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import fc from "fast-check";
import { FileMapping } from "../../ffi/os/address_space.ts";
import { PROT_READ, PROT_WRITE } from "../../ffi/os/mman.ts";
import { Mappable } from "../../ffi/files/mappable.ts";
import type { SavedLayout } from "../../src/core/snapshot_index.ts";
import { restorePlan } from "../../src/core/snapshot_layers.ts";
import { SnapshotError, type SnapshotErrorKind } from "../../src/core/snapshot_error.ts";
import { BaseMemory } from "../../src/snapshots/base_memory.ts";
import { CHUNK } from "../../src/snapshots/format.ts";
import { chainOfSnapshot, Snapshot } from "../../src/snapshots/snapshot.ts";
import { openLayer } from "../../src/snapshots/snapshot_chain.ts";
import { SnapshotWriter } from "../../src/snapshots/snapshot_writer.ts";
import { openFds } from "../support/proc.ts";
import { PAGE } from "../support/units.ts";

const PAGES = 16;
const LAYOUT: SavedLayout = {
  maxAddress: PAGES * PAGE,
  x86Legacy: false,
  backings: [{ name: "ram", ranges: [{ start: 0, end: PAGES * PAGE, offset: 0 }] }],
};

/** Which page is full of which byte. */
type Pages = ReadonlyMap<number, number>;

/** Writes a snapshot of pages, each full of one byte, and returns its id. */
function write(directory: string, pages: Pages, parent: string | null = null, state = new Map<string, Uint8Array>()) {
  using file = Mappable.memfd("pages", PAGES * PAGE);
  for (const [page, byte] of pages) file.write(page * PAGE, new Uint8Array(PAGE).fill(byte));
  using mapping = new FileMapping(file.fd, 0, PAGES * PAGE, PROT_READ | PROT_WRITE);
  using writer = new SnapshotWriter(directory, { parent, layout: LAYOUT, visibility: [], state });
  for (
    const page of parent === null ? Array.from({ length: PAGES }, (_, i) => i) : [...pages.keys()].sort((a, b) => a - b)
  ) {
    const bytes = new Uint8Array(mapping.bytes, page * PAGE, PAGE);
    writer.store(bytes, mapping.address + page * PAGE, page * PAGE);
  }
  writer.publish();
  const layer = openLayer(directory);
  layer.memory[Symbol.dispose]();
  return layer.index.id;
}

/** What the pages of a full snapshot are full of, 0 for zeros. */
async function contents(directory: string): Promise<number[]> {
  const bytes = await Deno.readFile(`${directory}/memory`);
  return Array.from({ length: PAGES }, (_, page) => {
    const [first = 0] = bytes.subarray(page * PAGE);
    assert(bytes.subarray(page * PAGE, (page + 1) * PAGE).every((byte) => byte === first));
    return first;
  });
}

/** A temporary directory, until disposed. */
function folder() {
  const path = Deno.makeTempDirSync();
  return { path, [Symbol.dispose]: () => Deno.removeSync(path, { recursive: true }) };
}

async function assertFails(kind: SnapshotErrorKind, open: () => Promise<Snapshot>): Promise<void> {
  const error = await assertRejects(open, SnapshotError);
  assertEquals(error.kind, kind, error.message);
}

Deno.test("a snapshot has the bytes and the state that were saved, and stores no page of zeros", async () => {
  using dir = folder();
  const before = openFds();
  write(`${dir.path}/a`, new Map([[1, 7], [2, 8], [9, 9]]), null, new Map([["vcpu", Uint8Array.of(1, 2, 3)]]));
  {
    using snapshot = await Snapshot.open(`${dir.path}/a`, { verify: true });
    assertEquals([snapshot.byteLength, snapshot.storedBytes, snapshot.parent], [PAGES * PAGE, 3 * PAGE, null]);
    assertEquals([...snapshot.state], [["vcpu", Uint8Array.of(1, 2, 3)]]);
  }
  assertEquals((await contents(`${dir.path}/a`)).map((byte, page) => byte && [page, byte]).filter(Boolean), [
    [1, 7],
    [2, 8],
    [9, 9],
  ]);
  assertEquals([...Deno.readDirSync(dir.path)].map(({ name }) => name), ["a"]);
  assertEquals(openFds(), before);
});

Deno.test("any chain of differences, flattened, is what a plain array of pages becomes", async () => {
  using dir = folder();
  let made = 0;
  const pages = fc.dictionary(fc.nat(PAGES - 1).map(String), fc.nat(3), { maxKeys: PAGES });
  await fc.assert(
    fc.asyncProperty(fc.array(pages, { minLength: 1, maxLength: 5 }), async (changes) => {
      const naive = new Array<number>(PAGES).fill(0);
      const paths: string[] = [];
      let parent: string | null = null;
      for (const change of changes) {
        const path = `${dir.path}/${made++}`;
        const entries = Object.entries(change).map(([page, byte]) => [Number(page), byte] as const);
        for (const [page, byte] of entries) naive[page] = byte;
        parent = write(path, new Map(entries), parent);
        paths.unshift(path);
      }
      const [last = "", ...parents] = paths;
      using snapshot = await Snapshot.open(last, { verify: true, parents: parents.toSorted() });
      using flat = await snapshot.flatten(`${dir.path}/flat-${made}`);
      assertEquals(flat.parent, null);
      assertEquals(await contents(`${dir.path}/flat-${made}`), naive);
      assertEquals(flat.storedBytes, naive.filter((byte) => byte !== 0).length * PAGE);
    }),
    { numRuns: 30 },
  );
});

Deno.test("however few mappings there are, a restored chain has every page from where it belongs", () => {
  const span = fc.tuple(fc.nat(30), fc.integer({ min: 1, max: 4 }), fc.boolean());
  const index = fc.array(span, { maxLength: 8 });
  fc.assert(
    fc.property(fc.array(index, { minLength: 1, maxLength: 4 }), fc.nat(12), (spans, mappings) => {
      const naive = new Array<number>(40).fill(-1);
      const full = new Array<number>(40).fill(-1);
      const chain = spans.map((of, place) => {
        let last = 0;
        const stored: { start: number; end: number; checksum: number }[] = [];
        const zeros: { start: number; end: number }[] = [];
        for (const [from, length, isZero] of of.toSorted((a, b) => a[0] - b[0])) {
          const start = Math.max(from, last);
          const end = from + length;
          if (end <= start) continue;
          last = end;
          if (isZero && place > 0) zeros.push({ start: start * PAGE, end: end * PAGE });
          else stored.push({ start: start * PAGE, end: end * PAGE, checksum: 0 });
          naive.fill(isZero && place > 0 ? -1 : place, start, end);
          if (place === 0) full.fill(0, start, end);
        }
        return { id: `${place}`, parent: null, layout: LAYOUT, visibility: [], stored, zeros, state: new Map() };
      });
      const { mapped, copied } = restorePlan(chain, mappings);
      for (const { start, end, value } of [...mapped, ...copied]) full.fill(value ?? -1, start / PAGE, end / PAGE);
      assertEquals(full, naive);
      assert(mapped.length * 2 <= mappings);
    }),
    { numRuns: 300 },
  );
});

Deno.test("what is not whole is a typed error that names the file", async () => {
  using dir = folder();
  const [a, b] = [`${dir.path}/a`, `${dir.path}/b`];
  const id = write(a, new Map([[1, 7], [2, 8]]));
  write(b, new Map([[1, 9]]), id);
  await assertFails("missing", () => Snapshot.open(`${dir.path}/none`));
  await assertFails("parent", () => Snapshot.open(b));
  await assertFails("parent", () => Snapshot.open(b, { parents: [b] }));
  assertThrows(
    () => new SnapshotWriter(a, { parent: null, layout: LAYOUT, visibility: [], state: new Map() }),
    SnapshotError,
  );

  const index = await Deno.readFile(`${a}/index`);
  const restore = () => Deno.writeFile(`${a}/index`, index);
  for (let at = 0; at < index.length; at += 5) {
    await Deno.writeFile(`${a}/index`, index.map((byte, i) => i === at ? byte ^ 0x10 : byte));
    const error = await assertRejects(() => Snapshot.open(a), SnapshotError);
    assertEquals(error.kind, at >= 8 && at < 12 ? "version" : "corrupt", `byte ${at}`);
  }
  for (const length of [0, 10, 24, index.length - 1]) {
    await Deno.writeFile(`${a}/index`, index.subarray(0, length));
    await assertRejects(() => Snapshot.open(a), SnapshotError);
  }
  await restore();

  {
    using file = await Deno.open(`${a}/memory`, { write: true });
    await file.seek(2 * PAGE + 5, Deno.SeekMode.Start);
    await file.write(Uint8Array.of(1));
  }
  {
    using unread = await Snapshot.open(a);
    await assertRejects(() => unread.verify(), SnapshotError, "0x2000 to 0x3000");
    const error = await assertRejects(() => unread.flatten(`${dir.path}/c`), SnapshotError);
    assertEquals(error.kind, "corrupt");
  }
  await assertFails("corrupt", () => Snapshot.open(b, { verify: true, parents: [a] }));
  await Deno.truncate(`${a}/memory`, 3 * PAGE);
  await assertFails("truncated", () => Snapshot.open(a));
  assertEquals([...Deno.readDirSync(dir.path)].map(({ name }) => name).sort(), ["a", "b"]);
});

Deno.test("bytes where a full snapshot has holes are not what was saved", async () => {
  using dir = folder();
  const a = `${dir.path}/a`;
  write(a, new Map([[1, 7], [4, 8]]));
  const poke = async (page: number) => {
    using file = await Deno.open(`${a}/memory`, { write: true });
    await file.seek(page * PAGE + 5, Deno.SeekMode.Start);
    await file.write(Uint8Array.of(1));
  };
  const length = Deno.statSync(`${a}/memory`).size;
  {
    // A copy may have written the holes down.
    const bytes = await Deno.readFile(`${a}/memory`);
    await Deno.writeFile(`${a}/memory`, bytes);
    using _whole = await Snapshot.open(a, { verify: true });
  }
  const bytes = await Deno.readFile(`${a}/memory`);
  for (const page of [0, 2, 3, length / PAGE - 1]) {
    await poke(page);
    const error = await assertRejects(() => Snapshot.open(a, { verify: true }), SnapshotError);
    assertEquals([error.kind, error.path], ["corrupt", `${a}/memory`]);
    await Deno.writeFile(`${a}/memory`, bytes);
  }
});

Deno.test("what is no path cannot be flattened to", async () => {
  using dir = folder();
  write(`${dir.path}/a`, new Map([[1, 7]]));
  using snapshot = await Snapshot.open(`${dir.path}/a`);
  for (const path of [undefined, 5, {}, "", "a\0b"]) {
    await assertRejects(() => snapshot.flatten(path as string), TypeError);
  }
});

Deno.test("a snapshot that is not finished leaves nothing behind", () => {
  using dir = folder();
  const before = openFds();
  {
    using _writer = new SnapshotWriter(`${dir.path}/a/`, {
      parent: null,
      layout: LAYOUT,
      visibility: [],
      state: new Map(),
    });
    assertEquals([...Deno.readDirSync(dir.path)].length, 1);
  }
  assertEquals([...Deno.readDirSync(dir.path)], []);
  assertEquals(openFds(), before);
});

Deno.test("memory is compared with a chain page by page, zeros and missing parts included", async () => {
  using dir = folder();
  const id = write(`${dir.path}/a`, new Map([[1, 7], [2, 8], [5, 5]]));
  write(`${dir.path}/b`, new Map([[2, 9], [5, 0]]), id);
  using snapshot = await Snapshot.open(`${dir.path}/b`, { parents: [`${dir.path}/a`] });
  using zeros = Mappable.memfd("zeros", CHUNK);
  using base = new BaseMemory(chainOfSnapshot(snapshot), zeros);
  using file = Mappable.memfd("now", PAGES * PAGE);
  using mapping = new FileMapping(file.fd, 0, PAGES * PAGE, PROT_READ | PROT_WRITE);
  const bytes = new Uint8Array(mapping.bytes);
  bytes.fill(7, PAGE, 2 * PAGE);
  bytes.fill(9, 2 * PAGE, 3 * PAGE);
  assertEquals([...base.differing(mapping.address, PAGES * PAGE, 0)], []);
  bytes[3 * PAGE - 1] = 1;
  bytes[3 * PAGE] = 1;
  bytes[5 * PAGE] = 5;
  bytes[PAGES * PAGE - 1] = 1;
  assertEquals([...base.differing(mapping.address, PAGES * PAGE, 0)], [
    { start: 2 * PAGE, end: 4 * PAGE },
    { start: 5 * PAGE, end: 6 * PAGE },
    { start: (PAGES - 1) * PAGE, end: PAGES * PAGE },
  ]);
  assertEquals([...base.differing(mapping.address + 3 * PAGE, 2 * PAGE, 3 * PAGE)], [{
    start: 3 * PAGE,
    end: 4 * PAGE,
  }]);
});
