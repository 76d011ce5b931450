/**
 * The host bridge of Intel's 440FX: the function 00:00.0 by which SeaBIOS knows what machine it is on, and whose PAM
 * registers it uses to get at the RAM below its ROM.
 *
 * @module
 */

import type { ChipsetMemory } from "./chipset_memory.ts";
import { PAM_COUNT, PAM_OFFSET, pamChanges } from "./pam.ts";
import { PciFunction } from "./pci_bus.ts";

/** The function 00:00.0. */
export class HostBridge extends PciFunction {
  readonly #memory: ChipsetMemory;
  readonly #onRefused: (error: unknown) => void;
  #pam: Uint8Array = new Uint8Array(PAM_COUNT);

  /** Asks `memory` for what the PAM registers say, and tells `onRefused` why it is not so. */
  constructor(memory: ChipsetMemory, onRefused: (error: unknown) => void) {
    super();
    this.#memory = memory;
    this.#onRefused = onRefused;
    this.fields.setUint32(0x00, 0x1237_8086, true); // Intel 82441FX
    this.fields.setUint32(0x08, 0x0600_0002, true); // host bridge, revision 2
    this.fields.setUint32(0x2c, 0x1100_1af4, true); // QEMU's subsystem: SeaBIOS then looks for fw_cfg
    this.allow(0x58, 0x3333_3000); // PAM0 has its high nibble alone; PAM1, PAM2
    this.allow(0x5c, 0x3333_3333); // PAM3-PAM6
  }

  /** However many registers one write has changed, it is one request. One that fails leaves them as they were. */
  protected override written(start: number, end: number): void {
    const pam = this.config.slice(PAM_OFFSET, PAM_OFFSET + PAM_COUNT);
    const changes = pamChanges(this.#pam, pam);
    const value = this.config.slice(start, end).toReversed();
    try {
      if (changes.length > 0) this.#memory.setVisibility(changes, `PAM: 0x${start.toString(16)} <- 0x${value.toHex()}`);
      this.#pam = pam;
    } catch (error) {
      this.config.set(this.#pam, PAM_OFFSET);
      this.#onRefused(error);
    }
  }
}
