/**
 * The devices without a guest: what a driver that does not keep to the rules comes to.
 *
 * @module
 */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { GuestMemoryManager, MemoryRange } from "membacking";
import { RecordingPartition } from "membacking/testing";
import { acpiTables } from "../../examples/linux/acpi.ts";
import { KernelImageError } from "../../examples/linux/kernel_image_error.ts";
import { readKernelImage } from "../../examples/linux/kernel_image.ts";
import { COM1, Uart } from "../../examples/linux/uart.ts";
import { VirtioBalloon } from "../../examples/linux/virtio/balloon.ts";
import type { VirtioDevice } from "../../examples/linux/virtio/device.ts";
import { VirtioMem } from "../../examples/linux/virtio/mem.ts";
import { VirtioMmio } from "../../examples/linux/virtio/mmio_transport.ts";
import { Driver } from "../../examples/virtqueue/driver.ts";

const MIB = 0x10_0000;
const RAM = 8 * MIB;
const LAYOUT = { size: 8, descriptors: 0x1000, available: 0x2000, used: 0x3000 };
const REGISTER = {
  queueSelect: 0x30,
  queueSize: 0x38,
  queueReady: 0x44,
  notify: 0x50,
  acknowledge: 0x64,
  status: 0x70,
};
const DRIVER_OK = 0xf;
const NEEDS_RESET = 0x40;

/** A device with a driver that the test plays. */
class Rig implements Disposable {
  readonly guest = GuestMemoryManager.create({ maxAddress: 64 * MIB, ram: [{ ranges: [new MemoryRange(0, RAM)] }] });
  readonly driver = new Driver(this.guest.memory, LAYOUT);
  readonly broken: unknown[] = [];
  readonly #mmio: VirtioMmio;
  irq = false;

  constructor(make: (guest: GuestMemoryManager) => VirtioDevice, queue = 0, layout = LAYOUT) {
    this.guest.attachPartition(new RecordingPartition());
    this.#mmio = new VirtioMmio(make(this.guest), {
      ...{ gpa: 0, irq: 0, memory: this.guest.memory },
      setIrq: (level) => this.irq = level,
      onBroken: (error) => this.broken.push(error),
    });
    this.write(REGISTER.queueSelect, queue);
    this.write(REGISTER.queueSize, layout.size);
    for (
      const [register, address] of [[0x80, layout.descriptors], [0x90, layout.available], [0xa0, layout.used]] as const
    ) {
      this.write(register, address >>> 0);
      this.write(register + 4, Math.floor(address / 2 ** 32));
    }
    this.write(REGISTER.queueReady, 1);
    this.write(REGISTER.status, DRIVER_OK);
  }

  write(register: number, value: number): void {
    this.#mmio.write(register, new Uint8Array(new Uint32Array([value]).buffer));
  }

  read(register: number): number {
    const data = new Uint8Array(4);
    this.#mmio.read(register, data);
    return new DataView(data.buffer).getUint32(0, true);
  }

  [Symbol.dispose](): void {
    this.guest[Symbol.dispose]();
  }
}

const balloon = (guest: GuestMemoryManager) => new VirtioBalloon((range) => guest.discard(range));

Deno.test("pages that a driver puts into the balloon read as zeros, and the driver is told", () => {
  using rig = new Rig(balloon);
  rig.guest.memory.fill(4 * MIB, 3 * 4096, 7);
  rig.guest.memory.write(0x5000, new Uint8Array(new Uint32Array([1026, 1024]).buffer));
  rig.driver.describe(0, 0x5000, 8, 0);
  rig.driver.submit(0);
  rig.write(REGISTER.notify, 0);
  assertEquals([0, 4096, 8192].map((at) => rig.guest.memory.readUint8(4 * MIB + at)), [0, 7, 0]);
  assertEquals([rig.driver.take(), rig.irq, rig.broken], [{ head: 0, written: 0 }, true, []]);
  rig.write(REGISTER.acknowledge, 1);
  assertEquals(rig.irq, false);
});

const WRONGS: Readonly<Record<string, (rig: Rig) => void>> = {
  "pages that are no RAM": ({ guest, driver }) => {
    guest.memory.write(0x5000, new Uint8Array(new Uint32Array([0xffff_ffff]).buffer));
    driver.describe(0, 0x5000, 4, 0);
    driver.submit(0);
  },
  "a list that is nowhere": ({ driver }) => {
    driver.describe(0, 2 ** 45, 4, 0);
    driver.submit(0);
  },
  "a list that has no end": ({ driver }) => {
    driver.describe(0, 0x5000, 0xffff_ffff, 0);
    driver.submit(0);
  },
  "a descriptor that is not there": ({ driver }) => driver.submit(200),
  "descriptors in a circle": ({ driver }) => {
    driver.describe(0, 0x5000, 4, 1, 0);
    driver.submit(0);
  },
};

for (const [what, doIt] of Object.entries(WRONGS)) {
  Deno.test(`a driver that hands over ${what} is asked to begin anew, and can`, () => {
    using rig = new Rig(balloon);
    doIt(rig);
    rig.write(REGISTER.notify, 0);
    assertEquals([rig.broken.length, rig.read(REGISTER.status) & NEEDS_RESET, rig.irq], [1, NEEDS_RESET, true]);
    rig.write(REGISTER.status, 0);
    assertEquals([rig.read(REGISTER.status), rig.irq], [0, false]);
  });
}

Deno.test("a queue whose size is no power of two, or that is nowhere, is the driver's mistake", () => {
  using odd = new Rig(balloon, 0, { ...LAYOUT, size: 7 });
  assertEquals([odd.broken.length, odd.read(REGISTER.queueReady)], [1, 0]);
  using nowhere = new Rig(balloon, 0, { ...LAYOUT, available: 2 ** 40 });
  nowhere.write(REGISTER.notify, 0);
  assertEquals(nowhere.broken.length, 1);
});

Deno.test("memory is plugged as far as it was asked for, in whole blocks that are not there, and unplugged as it was", async () => {
  const region = MemoryRange.of(16 * MIB, 16 * MIB);
  let mem: VirtioMem | undefined;
  using rig = new Rig((guest) =>
    mem = new VirtioMem({ region, block: 2 * MIB, add: (range) => guest.addRam({ ranges: [range] }) })
  );
  assert(mem !== undefined);
  mem.requested = 6 * MIB;
  const ask = async (kind: number, gpa: number, blocks: number) => {
    const request = new DataView(new ArrayBuffer(24));
    request.setUint16(0, kind, true);
    request.setBigUint64(8, BigInt(gpa), true);
    request.setUint16(16, blocks, true);
    rig.guest.memory.write(0x5000, new Uint8Array(request.buffer));
    rig.driver.describe(0, 0x5000, 24, 1, 1);
    rig.driver.describe(1, 0x6000, 10, 2);
    rig.driver.submit(0);
    rig.write(REGISTER.notify, 0);
    let back = rig.driver.take();
    for (; back === null; back = rig.driver.take()) await new Promise((resolve) => setTimeout(resolve, 0));
    assertEquals(back, { head: 0, written: 10 });
    return [rig.guest.memory.readUint16(0x6000), rig.guest.memory.readUint16(0x6008)];
  };
  const [done, refused, error] = [0, 1, 3];
  const { start } = region;
  assertEquals((await ask(0, start, 2))[0], done);
  assertEquals(rig.guest.ramRanges.map(String), ["0x0-0x800000", "0x1000000-0x1200000", "0x1200000-0x1400000"]);
  assertEquals((await ask(0, start + 2 * MIB, 1))[0], error, "it is there already");
  assertEquals((await ask(0, start + MIB, 1))[0], error, "half a block");
  assertEquals((await ask(0, 0, 1))[0], error, "outside");
  assertEquals((await ask(0, start + 4 * MIB, 2))[0], refused, "more than asked for");
  assertEquals(await ask(3, start, 3), [done, 2], "mixed");
  assertEquals((await ask(1, start, 3))[0], error, "not all of it is there");
  assertEquals((await ask(1, start, 1))[0], done);
  assertEquals((await ask(2, 0, 0))[0], done);
  assertEquals([mem.plugged, rig.guest.ramRanges.map(String), rig.broken], [0, ["0x0-0x800000"], []]);
});

Deno.test("a serial port interrupts for what was typed until it was read, and says what it is in loopback", () => {
  let level = false;
  const sent: number[] = [];
  const uart = new Uart((byte) => sent.push(byte), (on) => level = on);
  const port = (register: number) => COM1.port + register;
  uart.type([0x41, 0x42]);
  assertEquals([level, uart.read(port(5)) & 1], [false, 1]);
  uart.write(port(1), 1, 1);
  assertEquals([level, uart.read(port(2)) & 0xf], [true, 4]);
  assertEquals([uart.read(port(0)), level, uart.read(port(0)), level], [0x41, true, 0x42, false]);
  uart.write(port(0), 1, 0x43);
  assertEquals(sent, [0x43]);
  uart.write(port(4), 1, 0x10 | 0xa);
  assertEquals(uart.read(port(6)), 0x90);
});

Deno.test("every ACPI table adds up to 0, and is found from the first one", () => {
  const gpa = 0xc_0000;
  const { rsdp, bytes } = acpiTables({ gpa, vcpus: 2, devices: [{ gpa: 0xd000_0000, length: 0x1000, irq: 16 }] });
  const view = new DataView(bytes.buffer);
  const sum = (at: number, length: number) =>
    bytes.subarray(at - gpa, at - gpa + length).reduce((total, byte) => total + byte, 0) & 0xff;
  const lengthOf = (at: number) => view.getUint32(at - gpa + 4, true);
  const signature = (at: number) => new TextDecoder().decode(bytes.subarray(at - gpa, at - gpa + 4));
  assertEquals([sum(rsdp, 20), sum(rsdp, 36)], [0, 0]);
  const xsdt = Number(view.getBigUint64(rsdp - gpa + 24, true));
  const tables = [0, 1].map((i) => Number(view.getBigUint64(xsdt - gpa + 36 + 8 * i, true)));
  const dsdt = Number(view.getBigUint64(tables[0]! - gpa + 140, true));
  assertEquals([xsdt, ...tables, dsdt].map((at) => [signature(at), sum(at, lengthOf(at))]), [
    ["XSDT", 0],
    ["FACP", 0],
    ["APIC", 0],
    ["DSDT", 0],
  ]);
});

Deno.test("what is no kernel is refused with the reason", () => {
  assertThrows(() => readKernelImage(new Uint8Array(8192)), KernelImageError, "no setup header");
  const image = new Uint8Array(8192);
  const view = new DataView(image.buffer);
  view.setUint16(0x1fe, 0xaa55, true);
  view.setUint32(0x202, 0x5372_6448, true);
  view.setUint16(0x206, 0x0209, true);
  assertThrows(() => readKernelImage(image), KernelImageError, "0x209");
  view.setUint16(0x206, 0x020f, true);
  view.setUint8(0x1f1, 1);
  view.setUint32(0x24c, 9000, true);
  assertThrows(() => readKernelImage(image), KernelImageError, "The file ends at 8192");
  view.setUint32(0x24c, 100, true);
  image.set([0xfd, 0x37, 0x7a, 0x58, 0x5a], 1024);
  assertThrows(() => readKernelImage(image), KernelImageError, "compressed with XZ");
});
