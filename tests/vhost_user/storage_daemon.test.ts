/**
 * The front end with QEMU's storage daemon at the other end, and a guest that drives its queue at user privilege.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { GuestMemoryManager, Mappable, MemoryRange } from "membacking";
import { EventFd } from "membacking/kvm";
import { ProtocolFeature, VhostUserFrontend, VhostUserMemory } from "membacking/vhost-user";
import { LAYOUT, QUEUE_SIZE } from "../../examples/vhost/block_driver.ts";
import { DiskMachine } from "../../examples/vhost/machine.ts";
import { makeImage, StorageDaemon, whyNoDaemon } from "../../examples/vhost/storage_daemon.ts";
import { noKvm, testUnless } from "../support/require.ts";
import { descriptors, descriptorsAre } from "./rig.ts";

const daemonTest = (name: string, body: () => Promise<void>) => testUnless(noKvm ?? whyNoDaemon(), name, body);
const SECTORS = 4096;
const BUFFER = 0x10_0000;

/** A directory with an image, and a daemon that serves it. */
function served(): { image: string; socket: string; daemon: StorageDaemon } & AsyncDisposable {
  const directory = Deno.makeTempDirSync();
  const [image, socket] = [`${directory}/disk.img`, `${directory}/disk.sock`];
  makeImage(image, SECTORS);
  const disk = {
    ...{ image, socket, daemon: StorageDaemon.start(image, socket) },
    async [Symbol.asyncDispose]() {
      await disk.daemon.kill();
      Deno.removeSync(directory, { recursive: true });
    },
  };
  return disk;
}

/** RAM to be added. */
function added(machine: DiskMachine, start: number, length = 0x40_0000) {
  using file = Mappable.memfd("added", length);
  const region = machine.guest.regions.newRegion({
    name: "added",
    range: MemoryRange.of(start, length),
    priority: 200,
  });
  region.addMapping({ rangeInRegion: new MemoryRange(0, length), mappable: file });
  return region;
}

daemonTest("a guest reads and writes sectors of the storage daemon's disk", async () => {
  const before = descriptors();
  {
    await using disk = served();
    await using machine = await DiskMachine.start(disk.socket);
    assertEquals([machine.sectors, machine.frontend.memorySlots], [SECTORS, 32]);
    const { memory } = machine.guest;
    for (const sector of [0, 1, 77, SECTORS - 1]) {
      await machine.request({ type: "read", sector, buffer: BUFFER });
      assertEquals(memory.readUint32(BUFFER), sector + 1);
    }
    await machine.request({ type: "read", sector: 100, buffer: BUFFER, length: 0x1_0000 });
    assertEquals(memory.readUint32(BUFFER + 512 * 127), 228);
    memory.fill(BUFFER, 1024, 0x5a);
    await machine.request({ type: "write", sector: 5, buffer: BUFFER, length: 1024 });
    assertEquals([...Deno.readFileSync(disk.image).subarray(5 * 512, 7 * 512)], new Array(1024).fill(0x5a));
    assert(machine.call.take() > 0, "the back end signals what it has used");
  }
  await descriptorsAre(before);
});

daemonTest("I/O goes into memory that is added, at once, and goes on when it is removed", async () => {
  await using disk = served();
  await using machine = await DiskMachine.start(disk.socket);
  for (let round = 0; round < 5; round++) {
    const start = 0x1_0000_0000 + round * 0x1000_0000;
    const region = added(machine, start);
    region.map();
    await machine.request({ type: "read", sector: round, buffer: start + 0x3f_f000, length: 4096 });
    assertEquals(machine.guest.memory.readUint32(start + 0x3f_f000), round + 1);
    // Another file in its place: the disk writes into that one.
    using other = Mappable.memfd("other", 0x40_0000);
    region.addMapping({ rangeInRegion: new MemoryRange(0, 0x40_0000), mappable: other });
    await machine.request({ type: "read", sector: round + 50, buffer: start });
    const bytes = new Uint8Array(4);
    other.read(0, bytes);
    assertEquals(bytes[0], round + 51);
    region[Symbol.dispose]();
    await machine.request({ type: "read", sector: 9, buffer: BUFFER });
    assertEquals(machine.guest.memory.readUint32(BUFFER), 10);
  }
  assertEquals(machine.frontend.state, "connected");
});

daemonTest("memory comes and goes while the guest keeps the disk at work", async () => {
  await using disk = served();
  await using machine = await DiskMachine.start(disk.socket);
  const busy = machine.request({ type: "read", sector: 3, buffer: BUFFER, count: 3000 });
  for (let round = 0; round < 20; round++) {
    using region = added(machine, 0x1_0000_0000);
    region.map();
    await new Promise((resolve) => setTimeout(resolve, 1));
    region.map({ writable: false });
    region.unmap();
  }
  await busy;
  assertEquals(machine.guest.memory.readUint32(BUFFER), 4);
});

daemonTest("PAM ranges are switched while the guest keeps the disk at work", async () => {
  await using disk = served();
  await using machine = await DiskMachine.start(disk.socket);
  const ranges = machine.guest.ramRanges.filter(({ start, end }) => start >= 0xc0000 && end <= 0x10_0000);
  const busy = machine.request({ type: "read", sector: 3, buffer: BUFFER, count: 1000 });
  for (const to of ["read-only", "read-write"] as const) {
    for (const range of ranges) machine.guest.setRamVisibility(range, to);
  }
  await busy;
  for (const to of ["unmapped", "read-write"] as const) {
    for (const range of ranges) machine.guest.setRamVisibility(range, to);
    await machine.request({ type: "read", sector: 8, buffer: BUFFER });
    assertEquals(machine.guest.memory.readUint32(BUFFER), 9);
  }
  assertEquals(machine.frontend.state, "connected");
});

daemonTest("an entry with the vring is cut and made whole again, in short tables and in long ones", async () => {
  await using disk = served();
  await using machine = await DiskMachine.start(disk.socket);
  const range = machine.guest.ramRanges.find(({ start }) => start === 0xa0000)!;
  const others: Disposable[] = [];
  for (const entries of [1, 12]) {
    while (machine.memory.table.length < entries) {
      const region = added(machine, 0x1_0000_0000 + others.length * 0x1000_0000);
      region.map();
      others.push(region);
    }
    for (const to of ["unmapped", "read-write", "read-only", "read-write"] as const) {
      machine.guest.setRamVisibility(range, to);
      await machine.request({ type: "read", sector: 17, buffer: BUFFER, count: 10 });
      assertEquals(machine.guest.memory.readUint32(BUFFER), 18);
    }
    assertEquals([machine.frontend.state, machine.frontend.vrings[0]?.state], ["connected", "running"]);
  }
  for (const region of others) region[Symbol.dispose]();
});

daemonTest("RAM is added, given back to the host and removed while the guest keeps the disk at work", async () => {
  await using disk = served();
  await using machine = await DiskMachine.start(disk.socket);
  const { guest } = machine;
  const busy = machine.request({ type: "read", sector: 3, buffer: BUFFER, count: 1000 });
  const dimm = guest.addRam({ name: "dimm", ranges: [MemoryRange.of(0x1_0000_0000, 0x800_0000)] });
  guest.discard(MemoryRange.of(0x80_0000, 0x40_0000)); // of the RAM where the vring is
  await busy;
  await machine.request({ type: "read", sector: 40, buffer: 0x1_0000_0000 });
  assertEquals(guest.memory.readUint32(0x1_0000_0000), 41);
  guest.discard(MemoryRange.of(0x1_0000_0000, 0x1000));
  assertEquals(guest.memory.readUint32(0x1_0000_0000), 0);
  await machine.request({ type: "read", sector: 41, buffer: 0x1_0000_0000 });
  assertEquals(guest.memory.readUint32(0x1_0000_0000), 42);
  await dimm.remove();
  assertEquals([machine.frontend.state, machine.memory.table.length], ["connected", 1]);
});

daemonTest("the daemon is killed and started again, and the guest notices nothing but the time", async () => {
  await using disk = served();
  let ends = 0;
  await using machine = await DiskMachine.start(disk.socket, { onDisconnect: () => ends++ });
  for (let round = 0; round < 3; round++) {
    await machine.request({ type: "read", sector: 1, buffer: BUFFER, count: 10 });
    await disk.daemon.kill();
    const region = added(machine, 0x2_0000_0000 + round * 0x1000_0000);
    region.map();
    const waiting = machine.request({ type: "read", sector: 200 + round, buffer: region.range.start });
    disk.daemon = StorageDaemon.start(disk.image, disk.socket);
    await machine.frontend.reconnect({ patience: 10_000 });
    await waiting;
    assertEquals(machine.guest.memory.readUint32(region.range.start), 201 + round);
    assertEquals(machine.memory.table.at(-1)?.range.equals(region.range), true);
  }
  assertEquals(ends, 3);
});

daemonTest("the daemon's log has what it wrote: data, status and used ring", async () => {
  await using disk = served();
  await using machine = await DiskMachine.start(disk.socket);
  const taken = () => {
    const pages = new Set<number>();
    machine.memory.takeDirty((start, end) => {
      for (let gpa = start; gpa < end; gpa += 0x1000) pages.add(gpa);
    });
    return pages;
  };
  taken();
  assert(machine.memory.isLogging);
  await machine.request({ type: "read", sector: 1, buffer: BUFFER + 0x800, length: 0x1000 });
  const pages = taken();
  for (const gpa of [BUFFER, BUFFER + 0x1000, LAYOUT.used, LAYOUT.header]) assert(pages.has(gpa), gpa.toString(16));
  assert(pages.size < 8, `${pages.size} pages are marked`);
  assertEquals(taken().size, 0);
  await machine.request({ type: "write", sector: 1, buffer: BUFFER });
  assertEquals(taken().has(BUFFER), false);
});

daemonTest(
  "memory is copied while guest and daemon write it: what was written again is in the tracker's set",
  async () => {
    await using disk = served();
    await using machine = await DiskMachine.start(disk.socket);
    const { memory, regions } = machine.guest;
    const copy = new Uint8Array(0x200_0000);
    using tracker = regions.trackDirty();
    memory.readInto(0, copy);
    for (let round = 0; round < 10; round++) {
      for (let i = 0; i < 8; i++) {
        const buffer = BUFFER + ((round * 8 + i) * 0x2_7200) % 0x100_0000;
        await machine.request({ type: "read", sector: round * 8 + i, buffer, length: 0x1200 });
      }
      for (const { start, end } of tracker.take()) memory.readInto(start, copy.subarray(start, end));
    }
    for (const { start, end } of tracker.take()) memory.readInto(start, copy.subarray(start, end));
    const now = memory.read(0, 0x200_0000);
    const differing = Array.from({ length: 0x2000 }, (_, page) => page).filter((page) =>
      now.subarray(page * 0x1000, page * 0x1000 + 0x1000).some((byte, i) => byte !== copy[page * 0x1000 + i])
    );
    // Of what the guest itself writes (mailbox and rings) KVM has the log; it is not compared while the guest runs.
    assertEquals(differing.filter((page) => page >= BUFFER / 0x1000), []);
  },
);

daemonTest("without memory slots the daemon does with one table of eight entries", async () => {
  await using disk = served();
  await using machine = await DiskMachine.start(disk.socket, {
    protocolFeatures: ~ProtocolFeature.CONFIGURE_MEM_SLOTS,
  });
  assertEquals(machine.frontend.memorySlots, 8);
  const region = added(machine, 0x1_0000_0000);
  const busy = machine.request({ type: "read", sector: 3, buffer: BUFFER, count: 500 });
  region.map();
  await busy;
  await machine.request({ type: "read", sector: 30, buffer: 0x1_0000_0000 });
  assertEquals(machine.guest.memory.readUint32(0x1_0000_0000), 31);
  region.unmap();
});

daemonTest("a vring of the daemon is stopped, and goes on where it was", async () => {
  await using disk = served();
  await using machine = await DiskMachine.start(disk.socket);
  await machine.request({ type: "read", sector: 3, buffer: BUFFER, count: 7 });
  assertEquals(await machine.frontend.stopVring(0), 7);
  assertEquals(machine.frontend.vrings, []);
});

testUnless(whyNoDaemon(), "many queues: the daemon has as many as it was started with, and serves each", async () => {
  const directory = Deno.makeTempDirSync();
  const [image, socket] = [`${directory}/disk.img`, `${directory}/disk.sock`];
  makeImage(image, SECTORS);
  await using _daemon = StorageDaemon.start(image, socket, { queues: 4 });
  await using stack = new AsyncDisposableStack();
  const guest = stack.use(GuestMemoryManager.create({
    maxAddress: 0x1000_0000,
    ram: [{ ranges: [new MemoryRange(0, 0x100_0000)] }],
  }));
  const frontend = stack.use(await VhostUserFrontend.connect(socket, { patience: 10_000 }));
  const memory = stack.use(new VhostUserMemory(frontend));
  stack.use(guest.regions.addDmaTarget(memory));
  assertEquals(frontend.queueCount, 4);
  await frontend.setFeatures(1n << 32n);
  for (let queue = 0; queue < 4; queue++) {
    const at = 0x10_0000 * (queue + 1);
    const [kick, call] = [stack.use(new EventFd()), stack.use(new EventFd())];
    const ring = { descriptor: at, available: at + 0x1000, used: at + 0x2000 };
    await frontend.startVring(queue, { size: QUEUE_SIZE, ...ring, kick, call });
    const descriptor = (i: number, address: number, length: number, flags: number, next: number) => {
      guest.memory.writeBigUint64(at + 16 * i, BigInt(address));
      guest.memory.writeBigUint64(at + 16 * i + 8, BigInt(length) | BigInt(flags) << 32n | BigInt(next) << 48n);
    };
    guest.memory.writeBigUint64(at + 0x3008, BigInt(queue + 10));
    descriptor(0, at + 0x3000, 16, 1, 1);
    descriptor(1, at + 0x4000, 512, 3, 2);
    descriptor(2, at + 0x3010, 1, 2, 0);
    guest.memory.writeUint16(at + 0x1002, 1);
    kick.signal();
    while (guest.memory.readUint16(at + 0x2002) !== 1) await new Promise((resolve) => setTimeout(resolve, 1));
    assertEquals(guest.memory.readUint32(at + 0x4000), queue + 11);
    assertEquals(call.take() > 0, true);
  }
});
