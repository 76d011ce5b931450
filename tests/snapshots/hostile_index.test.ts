import { assert, assertEquals, assertRejects } from "@std/assert";
import fc from "fast-check";
import { GuestMemoryManager, MembackingError, MemoryRange, Snapshot, SnapshotError } from "membacking";
import { crc32 } from "node:zlib";
import { openFds } from "../support/proc.ts";

const MIB = 2 ** 20;

/** A snapshot of 2 MiB, and what its index is, until disposed. */
async function saved() {
  const path = Deno.makeTempDirSync();
  using guest = GuestMemoryManager.create({ maxAddress: 4 * MIB, ram: [{ ranges: [new MemoryRange(0, 2 * MIB)] }] });
  guest.memory.fill(0x1000, 0x3000, 1);
  guest.memory.fill(MIB, 0x1000, 2);
  using _snapshot = await guest.save(`${path}/a`, { state: { devices: new Uint8Array(100).fill(3) } });
  const file = `${path}/a/index`;
  return {
    path: `${path}/a`,
    file,
    bytes: Deno.readFileSync(file),
    [Symbol.dispose]: () => Deno.removeSync(path, { recursive: true }),
  };
}

/** With a checksum that agrees: what gets through is up to the other checks. */
function seal(changed: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
  if (changed.length >= 24) new DataView(changed.buffer).setUint32(12, crc32(changed.subarray(16)), true);
  return changed;
}

function headerEnd(bytes: Uint8Array<ArrayBuffer>): number {
  return 24 + Number(new DataView(bytes.buffer).getBigUint64(16, true));
}

function headerOf(bytes: Uint8Array<ArrayBuffer>) {
  return JSON.parse(new TextDecoder().decode(bytes.subarray(24, headerEnd(bytes))));
}

/** The index with another header. */
function withHeader(bytes: Uint8Array<ArrayBuffer>, header: unknown): Uint8Array<ArrayBuffer> {
  const json = new TextEncoder().encode(JSON.stringify(header));
  const rest = bytes.subarray(headerEnd(bytes));
  const changed = new Uint8Array(24 + json.length + rest.length);
  changed.set(bytes.subarray(0, 16));
  new DataView(changed.buffer).setBigUint64(16, BigInt(json.length), true);
  changed.set(json, 24);
  changed.set(rest, 24 + json.length);
  return changed;
}

/** Opens and restores; what does not work has to be one of our errors. Says whether it has worked. */
async function tryIt(path: string): Promise<boolean> {
  try {
    using snapshot = await Snapshot.open(path);
    using _guest = GuestMemoryManager.restore(snapshot);
    return true;
  } catch (error) {
    if (!(error instanceof MembackingError || error instanceof RangeError || error instanceof TypeError)) throw error;
    if (/call stack|allocation|Invalid array/i.test(error.message)) throw error;
    return false;
  }
}

Deno.test("whatever bytes an index has, it opens or is a typed error, and nothing stays open", async () => {
  using snapshot = await saved();
  const { bytes, file, path } = snapshot;
  const fds = openFds();
  let refused = 0;
  const words = [0, 1, 4095, 0x1000, 2 ** 21, 2 ** 31, 2 ** 32, 2 ** 52, 2 ** 53, -1, 1.5, 1e300, "x", null, [], {}];
  const header = headerOf(bytes);
  const places: [unknown, string][] = [];
  (function walk(value: unknown): void {
    if (typeof value !== "object" || value === null) return;
    for (const [key, inner] of Object.entries(value)) {
      places.push([value, key]);
      walk(inner);
    }
  })(header);
  await fc.assert(
    fc.asyncProperty(
      fc.oneof(
        fc.uint8Array({ maxLength: 200 }).map((random) => random.slice()),
        fc.tuple(fc.nat(bytes.length - 1), fc.nat(255)).map(([at, value]) => {
          const changed = bytes.slice();
          changed[at] = value;
          return changed;
        }),
        fc.nat(bytes.length).map((length) => bytes.slice(0, length)),
        fc.tuple(fc.nat(places.length - 1), fc.constantFrom(...words)).map(([at, value]) => {
          const [object, key] = places[at] as [Record<string, unknown>, string];
          const old = object[key];
          object[key] = value;
          const changed = withHeader(bytes, header);
          object[key] = old;
          return changed;
        }),
      ),
      async (changed) => {
        Deno.writeFileSync(file, seal(changed));
        if (!await tryIt(path)) refused++;
      },
    ),
    { numRuns: 400 },
  );
  assert(refused > 100, `${refused}`);
  assertEquals(openFds(), fds);
  Deno.writeFileSync(file, bytes);
  assert(await tryIt(path));
});

Deno.test("ranges of RAM are where they have to be in the memory file, or the index is none", async () => {
  using snapshot = await saved();
  const { bytes, file, path } = snapshot;
  for (const offset of [0x1000, 2 * MIB, "0", undefined]) {
    const header = headerOf(bytes);
    header.layout.backings[0].ranges[0].offset = offset;
    Deno.writeFileSync(file, seal(withHeader(bytes, header)));
    assertEquals((await assertRejects(() => Snapshot.open(path), SnapshotError)).kind, "corrupt");
  }
});

Deno.test("an index with very many ranges, of no end, or a pipe in its place is refused, not waited for or read to its end", async () => {
  using snapshot = await saved();
  const { bytes, file, path } = snapshot;
  const kindOf = async () => (await assertRejects(() => Snapshot.open(path), SnapshotError)).kind;
  const headerEnd = 24 + Number(new DataView(bytes.buffer).getBigUint64(16, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(24, headerEnd)));
  const range = { start: 0, end: 0x1000, offset: 0 };
  header.layout.backings[0].ranges = Array.from({ length: 300_000 }, () => range);
  const json = new TextEncoder().encode(JSON.stringify(header));
  const long = new Uint8Array(24 + json.length + bytes.length - headerEnd);
  long.set(bytes.subarray(0, 16));
  const view = new DataView(long.buffer);
  view.setBigUint64(16, BigInt(json.length), true);
  long.set(json, 24);
  long.set(bytes.subarray(headerEnd), 24 + json.length);
  view.setUint32(12, crc32(long.subarray(16)), true);
  Deno.writeFileSync(file, long);
  assertEquals(await kindOf(), "corrupt");
  Deno.truncateSync(file, 2 ** 40);
  assertEquals(await kindOf(), "corrupt");
  Deno.removeSync(file);
  assert(new Deno.Command("mkfifo", { args: [file] }).outputSync().success);
  assertEquals(await kindOf(), "truncated");
});
