/**
 * The board and the memory of the example machine without a guest: accesses come from the test, and the partition only
 * takes notes.
 *
 * @module
 */

import { Mappable } from "membacking";
import { RecordingPartition } from "membacking/testing";
import { Board } from "../../examples/firmware/board.ts";
import { COMMAND } from "../../examples/firmware/card.ts";
import type { FwCfgFile } from "../../examples/firmware/fw_cfg.ts";
import { ChipsetMemory, type Request } from "../../examples/firmware/chipset_memory.ts";
import { MachineMemory } from "../../examples/firmware/memory.ts";
import { setLittle } from "../../examples/pc/port_bus.ts";

/** RAM of the rig, in bytes. */
export const RAM = 0x200_0000;
/** Length of its ROM, in bytes. */
export const ROM = 0x4_0000;

/** Everything but the guest. */
export class Rig implements Disposable {
  readonly partition = new RecordingPartition();
  readonly memory: MachineMemory;
  readonly requests: Request[] = [];
  readonly refused: unknown[] = [];
  readonly log: string[] = [];
  readonly findings: string[] = [];
  readonly #board: Board;

  constructor(files: readonly FwCfgFile[] = []) {
    using rom = Mappable.memfd("rom", ROM);
    rom.write(0, new Uint8Array(Uint32Array.from({ length: ROM / 4 }, (_, i) => romWord(4 * i)).buffer));
    this.memory = new MachineMemory({ ram: RAM, rom });
    const { guest } = this.memory;
    guest.attachPartition(this.partition);
    const chipset = new ChipsetMemory(
      {
        newRegion: (options) => guest.regions.newRegion(options),
        newDeviceMemory: (name, length) => guest.newDeviceMemory(name, length),
        memfd: (name, size) => Mappable.memfd(name, size),
        batch: (requests) => guest.regions.batch(requests),
      },
      (request, carryOut) => {
        carryOut();
        this.requests.push(request);
      },
    );
    this.#board = new Board({
      ram: RAM,
      bus: this.memory.bus,
      files,
      memory: chipset,
      onLog: (line) => this.log.push(line),
      onFinding: (line) => this.findings.push(line),
      onRefused: (error) => this.refused.push(error),
    });
  }

  out(port: number, size: number, value: number): void {
    const data = new Uint8Array(size);
    setLittle(data, value);
    this.#board.io({ kind: "io", direction: "out", port, size, count: 1, data });
  }

  in(port: number, size: number, count = 1): Uint8Array {
    const data = new Uint8Array(size * count);
    this.#board.io({ kind: "io", direction: "in", port, size, count, data });
    return data;
  }

  in32(port: number): number {
    return new DataView(this.in(port, 4).buffer).getUint32(0, true);
  }

  readConfig(slot: number, offset: number): number {
    this.out(0xcf8, 4, 0x8000_0000 + (slot << 11) + offset);
    return this.in32(0xcfc);
  }

  writeConfig(slot: number, offset: number, value: number): void {
    this.out(0xcf8, 4, 0x8000_0000 + (slot << 11) + offset);
    this.out(0xcfc, 4, value);
  }

  /** Puts the card's windows there, as firmware does. */
  placeCard(registers: number, memory: number): void {
    this.writeConfig(1, 0x10, registers);
    this.writeConfig(1, 0x14, memory);
    this.writeConfig(1, COMMAND, 2);
  }

  /** What a guest without memory at `gpa` reads there. */
  load(gpa: number): number {
    const data = new Uint8Array(4);
    this.#board.mmio({ kind: "mmio", gpa, isWrite: false, length: 4, data });
    return new DataView(data.buffer).getUint32(0, true);
  }

  store(gpa: number, value: number): void {
    this.#board.mmio({ kind: "mmio", gpa, isWrite: true, length: 4, data: word(value) });
  }

  /** What the guest can do at `gpa`. */
  accessAt(gpa: number): "rw" | "ro" | "exit" {
    const access = this.partition.accessAt(gpa);
    return access === null ? "exit" : access.writable ? "rw" : "ro";
  }

  [Symbol.dispose](): void {
    this.memory[Symbol.dispose]();
  }
}

/** What the ROM has at an offset. */
export function romWord(offset: number): number {
  return 0x5a00_0000 + offset;
}

function word(value: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(Uint32Array.of(value).buffer);
}
