/**
 * The ACPI tables: what processors, interrupt controllers and devices there are, and how the machine is switched off.
 *
 * Specified in chapter 5 of the ACPI specification. A machine of any other VMM has them from its firmware.
 *
 * @module
 */

import { device, integer, interrupt, list, memory32, named, resources, scope, string } from "./aml.ts";
import { PM, SLEEP_TYPE_OFF } from "./power.ts";

/** A device that only ACPI tells of: one of virtio's, behind registers in memory. */
export interface AcpiDevice {
  /** Where its registers are. */
  readonly gpa: number;
  /** How long they are, in bytes. */
  readonly length: number;
  /** Its interrupt. */
  readonly irq: number;
}

/** What the tables tell of. */
export interface AcpiOptions {
  /** Where they will be. */
  readonly gpa: number;
  /** How many processors there are; their APICs have the numbers from 0 on. */
  readonly vcpus: number;
  /** The devices. */
  readonly devices: readonly AcpiDevice[];
}

/** The tables. */
export interface AcpiTables {
  /** Where the kernel begins to read. */
  readonly rsdp: number;
  /** All of them, to be put at the address asked for. */
  readonly bytes: Uint8Array;
}

const LOCAL_APIC = 0xfee0_0000;
const IO_APIC = 0xfec0_0000;

/** Makes the tables. */
export function acpiTables({ gpa, vcpus, devices }: AcpiOptions): AcpiTables {
  const bytes: number[] = [];
  const put = (table: readonly number[]): number => {
    while (bytes.length % 16 !== 0) bytes.push(0);
    const at = gpa + bytes.length;
    for (const byte of table) bytes.push(byte);
    return at;
  };
  const facs = put(fixed(64, { 0: text("FACS"), 4: u32(64), 32: [2] }));
  const dsdt = put(table("DSDT", 2, declarations(devices)));
  const fadt = put(table("FACP", 6, fadtBody(facs, dsdt)));
  const madt = put(table("APIC", 4, madtBody(vcpus)));
  const xsdt = put(table("XSDT", 1, [...u64(fadt), ...u64(madt)]));
  const rsdp = put(rootPointer(xsdt));
  return { rsdp, bytes: new Uint8Array(bytes) };
}

function declarations(devices: readonly AcpiDevice[]): number[] {
  return [
    ...named("_S5", list(integer(SLEEP_TYPE_OFF), integer(0), integer(0), integer(0))),
    ...scope(
      "_SB",
      ...devices.map(({ gpa, length, irq }, i) =>
        device(
          `VIO${i}`,
          named("_HID", string("LNRO0005")),
          named("_UID", integer(i)),
          named("_CCA", integer(1)),
          named("_CRS", resources(memory32(gpa, length), interrupt(irq))),
        )
      ),
    ),
  ];
}

/** Fixed hardware: the power registers, and that there is neither a keyboard controller nor a clock nor VGA. */
function fadtBody(facs: number, dsdt: number): number[] {
  const NO_VGA = 1 << 2, NO_CLOCK = 1 << 5;
  const CACHES_FLUSH = 1 << 0, HALTS = 1 << 2, NO_POWER_BUTTON = 1 << 4, NO_SLEEP_BUTTON = 1 << 5, CAN_RESET = 1 << 10;
  const port = (at: number, bits: number) => [1, bits, 0, 0, ...u64(at)];
  // Counted from the start of the table, whose head has 36 bytes.
  return fixed(276, {
    36: u32(facs),
    40: u32(dsdt),
    46: u16(PM.irq),
    56: u32(PM.events),
    64: u32(PM.control),
    88: [4, 2],
    96: [...u16(0xffff), ...u16(0xffff)], // no deeper sleep of a processor
    109: u16(NO_VGA | NO_CLOCK),
    112: u32(CACHES_FLUSH | HALTS | NO_POWER_BUTTON | NO_SLEEP_BUTTON | CAN_RESET),
    116: port(PM.reset, 8),
    128: [PM.resetValue],
    132: u64(facs),
    140: u64(dsdt),
    148: port(PM.events, 32),
    172: port(PM.control, 16),
  }).slice(36);
}

/** The interrupt controllers: a local APIC for each processor, an I/O APIC, and ACPI's own interrupt, by level. */
function madtBody(vcpus: number): number[] {
  const HAS_PICS = 1, ENABLED = 1, ACTIVE_HIGH_LEVEL = 0b1101;
  return [
    ...u32(LOCAL_APIC),
    ...u32(HAS_PICS),
    ...Array.from({ length: vcpus }, (_, i) => [0, 8, i, i, ...u32(ENABLED)]).flat(),
    ...[1, 12, vcpus, 0, ...u32(IO_APIC), ...u32(0)],
    ...[2, 10, 0, PM.irq, ...u32(PM.irq), ...u16(ACTIVE_HIGH_LEVEL)],
    ...[4, 6, 0xff, 0, 0, 1], // NMIs at pin 1 of every local APIC
  ];
}

function table(signature: string, revision: number, body: readonly number[]): number[] {
  const bytes = [
    ...text(signature),
    ...u32(36 + body.length),
    ...[revision, 0],
    ...text("MEMBCK"),
    ...text("EXAMPLE ".padEnd(8)),
    ...u32(1),
    ...text("MEMB"),
    ...u32(1),
    ...body,
  ];
  bytes[9] = checksum(bytes);
  return bytes;
}

function rootPointer(xsdt: number): number[] {
  const bytes = [...text("RSD PTR "), 0, ...text("MEMBCK"), 2, ...u32(0), ...u32(36), ...u64(xsdt), 0, 0, 0, 0];
  bytes[8] = checksum(bytes.slice(0, 20));
  bytes[32] = checksum(bytes);
  return bytes;
}

/** `length` bytes, zeros but for what is given by offset. */
function fixed(length: number, fields: Readonly<Record<number, readonly number[]>>): number[] {
  const bytes = new Array<number>(length).fill(0);
  for (const [at, values] of Object.entries(fields)) values.forEach((value, i) => bytes[Number(at) + i] = value);
  return bytes;
}

/** What makes all bytes add up to 0. */
function checksum(bytes: readonly number[]): number {
  return -bytes.reduce((sum, byte) => sum + byte, 0) & 0xff;
}

function text(value: string): number[] {
  return [...new TextEncoder().encode(value)];
}

function u16(value: number): number[] {
  return [value & 0xff, value >>> 8];
}

function u32(value: number): number[] {
  return [...u16(value & 0xffff), ...u16(value >>> 16)];
}

function u64(value: number): number[] {
  return [...u32(value >>> 0), ...u32(Math.floor(value / 2 ** 32))];
}
