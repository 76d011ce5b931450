import { assert, assertEquals } from "@std/assert";
import {
  type GuestMemory,
  GuestMemoryManager,
  Mappable,
  type MemoryPiece,
  MemoryRange,
  type RegionHandle,
  RegionManagerClient,
} from "membacking";
import { Kvm, type KvmVcpu } from "membacking/kvm";
import { RealModeCode, startRealMode } from "../support/guest.ts";
import { kvmTest } from "../support/require.ts";
import { PAGE } from "../support/units.ts";
import { Remote } from "./remote.ts";
import { RemoteProcess } from "./remote_process.ts";
import { randomFrom } from "./soak_layout.ts";

const CODE = 0x1000;
const AT = 0x10_0000;
const PAGES = 12;
const STEPS = 150;
const REPORT = 0x10;
const NOTHING = -1;

/** Code for each actor, owner included: `regions`, two of its own, and `file`, whose pages have stamps. */
const ACT = `
  const [which, kind, from, to, offset, writable] = request;
  const region = regions[which], rangeInRegion = new MemoryRange(from * 0x1000, to * 0x1000);
  if (kind === 0) await region.map({ writable });
  else if (kind === 1) await region.unmap();
  else await region.removeMappings(rangeInRegion); // Also before others: memory in no file has to be removed by name.
  const what = offset % 4 === 0 ? { mappable: "private" } : { mappable: file, fileOffset: offset * 0x1000 };
  if (kind > 2) await region.addMapping({ rangeInRegion, writable, ...what });
`;

const MAKE = `
  kept.file = Mappable.memfd("actor " + actor, 2 * pages * 0x1000);
  for (let page = 0; page < 2 * pages; page++) {
    kept.file.write(page * 0x1000, new Uint8Array(new Uint32Array([actor * 0x10000 + page]).buffer));
  }
  kept.regions = [];
  for (const [i, priority] of priorities.entries()) {
    kept.regions.push(await client.newRegion({ name: actor + "-" + i, range: MemoryRange.of(at, pages * 0x1000), priority }));
  }
`;

const LOOK = `
  const found = [];
  for (let page = 0; page < pages; page++) {
    const gpa = at + page * 0x1000;
    const isThere = client.memory.isMapped(gpa, 4);
    found.push([isThere ? client.memory.readUint32(gpa) : -1, client.memory.isMapped(gpa, 4, { write: true })]);
  }
  const piece = (found) => found === null ? null : {
    ...found, range: [found.range.start, found.range.end], mappable: null, hva: found.hva - client.memory.find(0).hva,
  };
  return {
    pages: found,
    pieces: [...client.memory.pieces()].map(piece),
    found: found.map((_, page) => piece(client.memory.find(at + page * 0x1000))),
  };
`;

/** A piece as plain data, but for the file, which clients do not have; host addresses from that of GPA 0 on. */
type Found = Omit<MemoryPiece, "range"> & { readonly range: readonly [start: number, end: number] };

interface Seen {
  readonly pages: readonly (readonly [value: number, writable: boolean])[];
  readonly pieces: readonly Found[];
  /** What `find` finds for each page. */
  readonly found: readonly (Found | null)[];
}

function foundIn(memory: GuestMemory): Found[] {
  const base = memory.find(0)?.hva ?? NaN;
  return [...memory.pieces()].map(({ range: { start, end }, ...piece }) => ({
    ...piece,
    ...{ range: [start, end], mappable: null, hva: piece.hva - base },
  }));
}

function look(memory: GuestMemory): Seen {
  const pages = Array.from({ length: PAGES }, (_, page) => {
    const gpa = AT + page * PAGE;
    const value = memory.isMapped(gpa, 4) ? memory.readUint32(gpa) : NOTHING;
    return [value, memory.isMapped(gpa, 4, { write: true })] as const;
  });
  const pieces = foundIn(memory);
  return { pages, pieces, found: pages.map((_, page) => pieceAt(pieces, AT + page * PAGE)) };
}

function pieceAt(pieces: readonly Found[], gpa: number): Found | null {
  return pieces.find(({ range: [start, end] }) => start <= gpa && gpa < end) ?? null;
}

/** The same to another process, which cannot access private memory. */
function fromOutside({ pages, pieces, found }: Seen): Seen {
  const seen = pages.map((page, i) => found[i]?.kind === "private" ? [NOTHING, false] as const : page);
  return { pages: seen, pieces, found };
}

/** What the guest reads from each page. */
function guestLooks(vcpu: KvmVcpu): number[] {
  startRealMode(vcpu, CODE);
  const found: number[] = [];
  while (true) {
    const exit = vcpu.run();
    if (exit.kind === "io") found.push(Number(exit.value));
    else if (exit.kind === "mmio" && !exit.isWrite) exit.data.fill(0xff);
    else if (exit.kind === "hlt") return found.map((value) => value === 0xffff_ffff ? NOTHING : value);
    else throw new Error(`Unexpected exit: ${exit.kind}`);
  }
}

kvmTest("guest, owner, Worker and process see the same memory after each request, whoever made it", async () => {
  using stack = new DisposableStack();
  const guest = stack.use(
    GuestMemoryManager.create({ maxAddress: 0x20_0000, ram: [{ ranges: [new MemoryRange(0, 0x1_0000)] }] }),
  );
  const vm = stack.use(stack.use(Kvm.open()).createVm());
  stack.use(guest.attachPartition(vm));
  const vcpu = stack.use(vm.createVcpu(0));
  const code = new RealModeCode();
  for (let page = 0; page < PAGES; page++) code.load(AT + page * PAGE, 4).out(REPORT, 4);
  guest.memory.write(CODE, code.halt().bytes());

  await using worker = await Remote.start(guest.regions);
  await using sync = await Remote.start(guest.regions, { sync: true });
  await using process = await RemoteProcess.start(guest.regions);
  const remotes = [worker, sync, process];
  const at = AT, pages = PAGES;
  // Whoever is above and below whom is mixed.
  for (const [i, remote] of remotes.entries()) {
    await remote.run(MAKE, { actor: i + 1, at, pages, priorities: [i + 1, 9 - i] });
  }
  const file = stack.use(Mappable.memfd("owner", 2 * PAGES * PAGE));
  for (let page = 0; page < 2 * PAGES; page++) {
    file.write(page * PAGE, new Uint8Array(new Uint32Array([0x9_0000 + page]).buffer));
  }
  const own: RegionHandle[] = [4, 6].map((priority) =>
    guest.regions.newRegion({ name: `owner-${priority}`, range: MemoryRange.of(AT, PAGES * PAGE), priority })
  );
  const ownAct = new Function("regions", "file", "MemoryRange", "request", `return (async () => {${ACT}})();`);

  const random = randomFrom(20261126);
  const counts = { there: 0, nothing: 0, readOnly: 0, own: 0 };
  const names = new Set<string>();
  for (let step = 0; step < STEPS; step++) {
    const from = random(PAGES);
    const to = from + 1 + random(PAGES - from);
    const request = [random(2), random(5), from, to, random(PAGES), random(3) > 0];
    const actor = random(remotes.length + 1);
    const remote = remotes[actor];
    if (remote === undefined) await ownAct(own, file, MemoryRange, request);
    else await remote.run(`const { regions, file } = kept; ${ACT}`, { request });

    const expected = look(guest.memory);
    const what = `step ${step}: actor ${actor}, ${request}`;
    for (const each of remotes) {
      const seen = await each.run<Seen>(LOOK, { at, pages });
      assertEquals(seen, each === process ? fromOutside(expected) : expected, what);
    }
    assertEquals(guestLooks(vcpu), expected.pages.map(([value]) => value), what);
    for (const piece of expected.found) {
      if (piece?.kind === "private") counts.own++;
      if (piece !== null) names.add(piece.region.name);
    }
    for (const [value, writable] of expected.pages) {
      if (value === NOTHING) counts.nothing++;
      else if (writable) counts.there++;
      else counts.readOnly++;
    }
  }
  assert(Object.values(counts).every((count) => count > STEPS / 4), JSON.stringify(counts));
  assert(names.size >= 3, `${[...names]}`);
});

Deno.test("a client finds what the owner finds where deeds change what memory is", async () => {
  const ram = new MemoryRange(0, 0x10_0000);
  using guest = GuestMemoryManager.create({ maxAddress: 0x40_0000, ram: [{ name: "low", ranges: [ram] }] });
  const own = MemoryRange.of(0x10_0000, 0x10_0000);
  using region = guest.regions.newRegion({ name: "own", range: own, priority: 3, type: "device" });
  region.addMapping({ rangeInRegion: MemoryRange.of(0, own.length), mappable: "private" });
  region.map();
  const { port1, port2 } = new MessageChannel();
  using _served = guest.regions.serve(port1);
  using client = await RegionManagerClient.connect(port2);
  const kinds = new Set<string>();
  const check = (what: string) => {
    assertEquals(foundIn(client.memory), foundIn(guest.memory), what);
    for (const { kind } of client.memory.pieces()) kinds.add(kind);
  };
  check("at first");
  using file = Mappable.memfd("image", 0x4000);
  using image = guest.newDeviceMemory("image", 0x8000);
  image.map({ offset: 0, mappable: file, copyOnWrite: true });
  for (const gpa of [0x30_0000, 0x31_0000]) {
    image.mapToGuest(gpa, true);
    assertEquals(client.memory.find(gpa)?.region.name, "image");
    check(`at ${gpa}`);
  }
  const before = [...client.memory.pieces()];
  {
    using _template = guest.freeze();
    check("frozen");
    client.memory.writeUint32(0x1000, 1);
    guest.rollback();
    check("rolled back");
  }
  guest.discard(new MemoryRange(0x4000, 0x8000));
  check("discarded");
  guest.setRamVisibility(ram, "read-only");
  check("read-only");
  guest.setRamVisibility(ram, "unmapped");
  check("unmapped");
  assertEquals(before.length, 3);
  assertEquals([...kinds].sort(), ["copy-on-write", "private", "shared"]);
});
