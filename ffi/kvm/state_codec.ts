/**
 * States as bytes, to be stored.
 *
 * ```
 *   "MBKSTATE"  version  kind  length  CRC-32 of what follows  parts: number, length, bytes
 * ```
 *
 * All numbers are 32 bits, little-endian; most parts are the kernel's structs.
 *
 * Why it is safe: it reads through a `DataView`, which checks bounds, after the lengths were compared.
 *
 * @module
 */

import { plainBytes } from "../os/plain_bytes.ts";
import { decodeCpuid, decodeMsrs, encodeCpuid, encodeMsrs } from "./cpuid_msrs.ts";
import { MSR_ENTRY, MSRS, REGS } from "./layout.ts";
import { decodeRegs, encodeRegs } from "./registers.ts";
import {
  checkVcpuState,
  checkVmState,
  IRQCHIPS,
  STATE_VERSION,
  StateError,
  type VcpuState,
  type VmState,
} from "./state.ts";

const MAGIC = "MBKSTATE";
const HEADER = { version: 8, kind: 12, length: 16, crc: 20, size: 24 } as const;
const KIND = { vcpu: 1, vm: 2 } as const;
/** The numbers of the parts. They stay for good: what was stored is read by later versions. */
const PART = {
  ...{ cpuid: 1, xcrs: 2, sregs: 3, regs: 4, xsave: 5, msrs: 6, lapic: 7, events: 8, mpState: 9, debugRegs: 10 },
  ...{ irqchips: 20, pit: 21, clock: 22 },
} as const;

type Bytes = Uint8Array<ArrayBuffer>;
type Parts = ReadonlyMap<number, Bytes>;

/**
 * A state as bytes, for `decodeState`.
 *
 * @throws {StateError} If it is no state.
 *
 * @example Usage
 * ```ts ignore
 * await Deno.writeFile("vcpu0.state", encodeState(vcpu.saveState()));
 * // ... later, in another process
 * vcpu.restoreState(decodeState(await Deno.readFile("vcpu0.state")) as VcpuState);
 * ```
 */
export function encodeState(state: VcpuState | VmState): Uint8Array<ArrayBuffer> {
  const isVm = (state as { kind?: unknown } | null)?.kind === "vm";
  const parts = isVm ? vmParts(checkVmState(state as VmState)) : vcpuParts(checkVcpuState(state as VcpuState));
  const length = parts.reduce((sum, [, part]) => sum + 8 + part.length, 0);
  const bytes = new Uint8Array(HEADER.size + length);
  const view = new DataView(bytes.buffer);
  bytes.set(new TextEncoder().encode(MAGIC));
  view.setUint32(HEADER.version, STATE_VERSION, true);
  view.setUint32(HEADER.kind, isVm ? KIND.vm : KIND.vcpu, true);
  view.setUint32(HEADER.length, length, true);
  let at = HEADER.size;
  for (const [number, part] of parts) {
    view.setUint32(at, number, true);
    view.setUint32(at + 4, part.length, true);
    bytes.set(part, at + 8);
    at += 8 + part.length;
  }
  view.setUint32(HEADER.crc, crc32(bytes.subarray(HEADER.size)), true);
  return bytes;
}

/**
 * The state that `encodeState` has stored, in this version or an earlier one.
 *
 * @throws {StateError} If it is anything else: cut off, changed, of a later version.
 */
export function decodeState(encoded: Uint8Array): VcpuState | VmState {
  const bytes = plainBytes(encoded).slice();
  const view = new DataView(bytes.buffer);
  if (bytes.length < HEADER.size || new TextDecoder().decode(bytes.subarray(0, MAGIC.length)) !== MAGIC) {
    throw new StateError("These bytes are not a stored state");
  }
  const version = view.getUint32(HEADER.version, true);
  if (version > STATE_VERSION || version === 0) {
    throw new StateError(`This state is of version ${version}, and this package knows versions up to ${STATE_VERSION}`);
  }
  const body = bytes.subarray(HEADER.size);
  const length = view.getUint32(HEADER.length, true);
  if (body.length !== length) {
    throw new StateError(`The stored state has ${body.length} bytes after its header instead of ${length}`);
  }
  if (crc32(body) !== view.getUint32(HEADER.crc, true)) throw new StateError("The stored state has been changed");
  const kind = view.getUint32(HEADER.kind, true);
  const parts = split(bytes);
  switch (kind) {
    case KIND.vcpu:
      return vcpuFrom(version, parts);
    case KIND.vm:
      return vmFrom(version, parts);
    default:
      throw new StateError(`There is no kind ${kind} of state`);
  }
}

function split(bytes: Bytes): Parts {
  const view = new DataView(bytes.buffer);
  const parts = new Map<number, Bytes>();
  for (let at: number = HEADER.size; at < bytes.length;) {
    const head = bytes.length - at >= 8;
    const length = head ? view.getUint32(at + 4, true) : 0;
    if (!head || length > bytes.length - at - 8) throw new StateError("A part of the stored state is cut off");
    const number = view.getUint32(at, true);
    if (parts.has(number)) throw new StateError(`Part ${number} of the stored state is there twice`);
    parts.set(number, bytes.slice(at + 8, at + 8 + length));
    at += 8 + length;
  }
  return parts;
}

function vcpuParts(state: VcpuState): [number, Bytes][] {
  const regs = new Uint8Array(REGS.size);
  encodeRegs(regs, state.regs);
  return [
    [PART.cpuid, encodeCpuid(state.cpuid)],
    [PART.xcrs, state.xcrs],
    [PART.sregs, state.sregs],
    [PART.regs, regs],
    [PART.xsave, state.xsave],
    [PART.msrs, encodeMsrs(state.msrs)],
    ...(state.lapic === null ? [] : [[PART.lapic, state.lapic] as [number, Bytes]]),
    [PART.events, state.events],
    [PART.mpState, words(BigInt(state.mpState))],
    [PART.debugRegs, state.debugRegs],
  ];
}

function vcpuFrom(version: number, parts: Parts): VcpuState {
  const part = (name: keyof typeof PART) => partOf(parts, name);
  const msrs = part("msrs");
  return reading(() =>
    checkVcpuState({
      kind: "vcpu",
      version,
      cpuid: decodeCpuid(part("cpuid")),
      xcrs: part("xcrs"),
      sregs: part("sregs"),
      regs: decodeRegs(part("regs")),
      xsave: part("xsave"),
      msrs: decodeMsrs(msrs, Math.floor((msrs.length - MSRS.size) / MSR_ENTRY.size)),
      lapic: parts.get(PART.lapic) ?? null,
      events: part("events"),
      mpState: Number(wordOf(part("mpState"))),
      debugRegs: part("debugRegs"),
    })
  );
}

function vmParts(state: VmState): [number, Bytes][] {
  const parts: [number, Bytes][] = [[PART.clock, words(state.clock)]];
  if (state.irqchips !== null) {
    const chips = new Uint8Array(IRQCHIPS.count * IRQCHIPS.length);
    state.irqchips.forEach((chip, i) => chips.set(chip, i * IRQCHIPS.length));
    parts.push([PART.irqchips, chips]);
  }
  if (state.pit !== null) parts.push([PART.pit, state.pit]);
  return parts;
}

function vmFrom(version: number, parts: Parts): VmState {
  const chips = parts.get(PART.irqchips);
  const chip = (i: number) => chips?.slice(i * IRQCHIPS.length, (i + 1) * IRQCHIPS.length) ?? new Uint8Array(0);
  return reading(() =>
    checkVmState({
      kind: "vm",
      version,
      irqchips: chips === undefined ? null : [chip(0), chip(1), chip(2)],
      pit: parts.get(PART.pit) ?? null,
      clock: wordOf(partOf(parts, "clock")),
    })
  );
}

function partOf(parts: Parts, name: keyof typeof PART): Bytes {
  const part = parts.get(PART[name]);
  if (part === undefined) throw new StateError(`The stored state has no part ${name}`);
  return part;
}

/** What does not fit its struct is a `RangeError` of a view. */
function reading<State>(read: () => State): State {
  try {
    return read();
  } catch (cause) {
    if (cause instanceof StateError) throw cause;
    throw new StateError("A part of the stored state is shorter than it says", { cause });
  }
}

function words(value: bigint): Bytes {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, value, true);
  return bytes;
}

function wordOf(bytes: Bytes): bigint {
  return new DataView(bytes.buffer).getBigUint64(0, true);
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = (crc & 1) === 0 ? crc >>> 1 : (crc >>> 1) ^ 0xedb8_8320;
  return crc;
});

function crc32(bytes: Uint8Array): number {
  let crc = 0xffff_ffff;
  for (const byte of bytes) crc = (crc >>> 8) ^ (CRC_TABLE[(crc ^ byte) & 0xff] ?? 0);
  return (crc ^ 0xffff_ffff) >>> 0;
}
