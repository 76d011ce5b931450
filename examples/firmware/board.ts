/**
 * The board: every device of the machine, and the way from an exit of the guest to the device it is meant for.
 *
 * @module
 */

import type { MemoryRange } from "membacking";
import type { KvmIoExit, KvmMmioExit } from "membacking/kvm";
import { FINDINGS_PORT } from "./boot_sector.ts";
import { Card, CARD_SLOT } from "./card.ts";
import { Cmos, CMOS_PORT } from "../pc/cmos.ts";
import { DEBUG_PORT, DebugPort } from "./debug_port.ts";
import { e820, FW_CFG_PORT, FwCfg, type FwCfgFile } from "./fw_cfg.ts";
import { HostBridge } from "./host_bridge.ts";
import type { ChipsetMemory } from "./chipset_memory.ts";
import { PCI_PORT, PCI_PORTS, PciBus } from "./pci_bus.ts";
import { little, PortBus, setLittle } from "../pc/port_bus.ts";
import { SYSTEM_CONTROL_PORT, SystemControl } from "./system_control.ts";

/** What the board is made of. */
export interface BoardOptions {
  /** The RAM below 4 GiB, in bytes. */
  readonly ram: number;
  /** The addresses at which cards can be. */
  readonly bus: MemoryRange;
  /** What the firmware gets besides the memory map. */
  readonly files: readonly FwCfgFile[];
  /** What carries out memory changes. */
  readonly memory: ChipsetMemory;
  /** Is told each line of the firmware's log. */
  readonly onLog: (line: string) => void;
  /** Is told each line that the boot sector found out. */
  readonly onFinding: (line: string) => void;
  /** Is told why memory is not as the guest wanted it. */
  readonly onRefused: (error: unknown) => void;
}

/** The devices. */
export class Board {
  readonly #ports = new PortBus();
  readonly #card: Card;

  /** Puts everything in its place. */
  constructor({ ram, bus, files, memory, onLog, onFinding, onRefused }: BoardOptions) {
    const ports = this.#ports;
    ports.attach(new DebugPort(onLog), DEBUG_PORT);
    ports.attach(new DebugPort(onFinding), FINDINGS_PORT);
    ports.attach(new Cmos(ram), CMOS_PORT, 2);
    ports.attach(new FwCfg([e820([{ start: 0, length: ram, type: 1 }]), ...files]), FW_CFG_PORT, 2);
    ports.attach(new SystemControl(), SYSTEM_CONTROL_PORT);
    const pci = new PciBus();
    this.#card = new Card(bus, memory, onRefused);
    pci.plug(0, new HostBridge(memory, onRefused));
    pci.plug(CARD_SLOT, this.#card);
    ports.attach(pci, PCI_PORT, PCI_PORTS);
  }

  /** The guest accessed a port. */
  io(exit: Omit<KvmIoExit, "value">): void {
    this.#ports.handle(exit);
  }

  /** The guest accessed an address without memory, or wrote to the ROM, which nobody minds. */
  mmio({ gpa, isWrite, data }: Omit<KvmMmioExit, "value">): void {
    if (this.#card.contains(gpa)) {
      if (isWrite) this.#card.writeMemory(gpa, little(data));
      else setLittle(data, this.#card.readMemory(gpa));
    } else if (!isWrite) {
      data.fill(0xff);
    }
  }
}
