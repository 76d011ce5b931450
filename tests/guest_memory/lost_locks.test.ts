/** Locks that nobody disposes, and input and output into locks that are gone. */
import { assert, assertEquals, assertNotEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { GuestMemoryManager, type Logger, Mappable, OsError, RegionManagerClient } from "membacking";
import { readToMemory } from "../../ffi/files/file_transfer.ts";
import { Remote } from "../clients/remote.ts";
import { collect, collectUntil } from "../support/gc.ts";
import { mappings } from "../support/proc.ts";
import { PAGE, range } from "../support/units.ts";

const MIB = 2 ** 20;

function create(warnings: string[] = []): GuestMemoryManager {
  const logger: Logger = {
    debug() {},
    info() {},
    warn: (message) => void warnings.push(message),
    error: (message) => void warnings.push(message),
  };
  return GuestMemoryManager.create({ maxAddress: 16 * MIB, ram: [{ ranges: [range(0, 2 * MIB)] }], logger });
}

/** The locked ranges of a manager. */
function locked(guest: GuestMemoryManager): string[] {
  return guest.regions.inspect().locks.map(({ range }) => range);
}

Deno.test("a lock that is dropped without being disposed is released, with a warning", async () => {
  const warnings: string[] = [];
  using guest = create(warnings);
  (() => {
    guest.memory.lock(range(0x3000, 0x5000), { write: true }).bytes[0] = 1;
  })();
  await collectUntil(() => locked(guest).length === 0);
  assertEquals(warnings.length, 1);
  assertStringIncludes(warnings[0] ?? "", "0x3000-0x5000 was dropped without being disposed");
  guest.setRamVisibility(range(0, 2 * MIB), "unmapped");
});

Deno.test("a lock whose bytes are in use stays, though nobody can dispose it", async () => {
  const warnings: string[] = [];
  using guest = create(warnings);
  let bytes: Uint8Array | null = (() => guest.memory.lock(range(0, PAGE), { write: true }).bytes.subarray(1))();
  await collect();
  assertEquals([locked(guest), warnings], [["0x0-0x1000"], []]);
  bytes[0] = 7;
  assertEquals(guest.memory.readUint8(1), 7);
  bytes = null;
  await collectUntil(() => locked(guest).length === 0);
  assertEquals(warnings.length, 1);
});

Deno.test("disposing the manager revokes bytes whose lock was dropped", async () => {
  const guest = create();
  const bytes = (() => guest.memory.lock(range(0, PAGE), { write: true }).bytes)();
  await collect();
  guest[Symbol.dispose]();
  assertEquals([bytes.length, bytes[0]], [0, undefined]);
});

Deno.test("a lock whose bytes were transferred away stays, whoever forgets it", async () => {
  const warnings: string[] = [];
  const guest = create(warnings);
  const { port1, port2 } = new MessageChannel();
  (() => {
    const { bytes } = guest.memory.lock(range(0, PAGE));
    port1.postMessage(bytes, [bytes.buffer]);
  })();
  await collectUntil(() => warnings.length > 0);
  assertEquals(locked(guest), ["0x0-0x1000"]);
  assertStringIncludes(warnings[0] ?? "", "0x0-0x1000 stays locked for good");
  port1.close();
  port2.close();
  assertThrows(() => guest[Symbol.dispose](), Error, "1 step failed");
});

Deno.test("a lock that a client drops without disposing it is released as well", async () => {
  using guest = create();
  const { port1, port2 } = new MessageChannel();
  using _served = guest.regions.serve(port1);
  const client = await RegionManagerClient.connect(port2);
  (() => {
    client.memory.lock(range(0x3000, 0x5000), { write: true }).bytes[0] = 1;
  })();
  assertEquals(locked(guest), ["0x3000-0x5000"]);
  await collectUntil(() => locked(guest).length === 0);
  const kept = client.memory.lock(range(0, PAGE));
  client[Symbol.dispose]();
  assertEquals(kept.bytes.length, 0);
});

Deno.test("host addresses that were locked are never given to anything else", () => {
  const guest = create();
  const address = guest.memory.hostAddress(0x20_0000 - PAGE, PAGE);
  const outside = guest.memory.hostAddress(0, 1) + 8 * MIB;
  guest.memory.lock(range(0x20_0000 - PAGE, 0x20_0000), { write: true })[Symbol.dispose]();
  guest[Symbol.dispose]();

  const [kept] = mappings(address, address + PAGE);
  assertEquals([kept?.access, kept?.file], ["---p", ""]);
  assertEquals(mappings(outside, outside + PAGE).filter(({ access }) => access !== "---p"), []);
  // What a late read into the lock now meets.
  using source = Mappable.memfd("late", PAGE);
  const late = assertThrows(() => readToMemory(source, 0, address, PAGE, { done: 0 }), OsError);
  assertEquals(late.code, "EFAULT");
});

Deno.test("host addresses that a client has locked are never given to anything else, even if the owner saw no lock", async () => {
  for (const leave of ["disposed", "ended"] as const) {
    const guest = create();
    const base = guest.memory.hostAddress(0, 1);
    {
      await using remote = await Remote.start(guest.regions, { sync: true });
      await remote.run("client.memory.lock(new MemoryRange(0x8000, 0x9000))[Symbol.dispose]()");
      await remote.run("client.memory.lock(new MemoryRange(0x4000, 0x5000))[Symbol.dispose]()");
      if (leave === "disposed") await remote.run("client[Symbol.dispose]()");
    }
    guest[Symbol.dispose]();
    const [kept] = mappings(base + 0x4000, base + 0x9000);
    assertEquals([kept?.access, kept?.file], ["---p", ""], leave);
  }
});

Deno.test("the bytes of a lock of read-only memory are at addresses that are used once", () => {
  using guest = create();
  guest.setRamVisibility(range(0, 2 * MIB), "read-only");
  const addressOf = () => {
    using lock = guest.memory.lock(range(0, PAGE));
    return Number(Deno.UnsafePointer.value(Deno.UnsafePointer.of(lock.bytes)));
  };
  const seen = new Set<number>();
  for (let i = 0; i < 100; i++) {
    const address = addressOf();
    assert(!seen.has(address));
    seen.add(address);
    const [kept] = mappings(address, address + PAGE);
    assertEquals(kept?.access, "---p");
  }
  const before = mappings().length;
  for (let i = 0; i < 1000; i++) assertNotEquals(addressOf(), 0);
  // V8 may have grown its heap meanwhile.
  assert(mappings().length < before + 20, "locks that are gone leave mappings behind");
});
