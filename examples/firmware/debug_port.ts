/**
 * The port that firmware writes its log to, one character at a time.
 *
 * @module
 */

import type { PortDevice } from "../pc/port_bus.ts";

/** The port of Bochs and QEMU that SeaBIOS writes its log to. */
export const DEBUG_PORT = 0x402;

/** What a read gives where there is such a port; SeaBIOS looks for it before it writes. */
const PRESENT = 0xe9;

/** Gathers characters to lines. */
export class DebugPort implements PortDevice {
  #line = "";
  readonly #onLine: (line: string) => void;

  /** `onLine` is told each line once it is complete, without its end. */
  constructor(onLine: (line: string) => void) {
    this.#onLine = onLine;
  }

  /** Says that the port is there. */
  read(): number {
    return PRESENT;
  }

  /** Takes one character. */
  write(_port: number, _size: number, value: number): void {
    const char = String.fromCharCode(value & 0xff);
    if (char !== "\n") {
      this.#line += char;
      return;
    }
    const line = this.#line.replace(/\r$/, "");
    this.#line = "";
    this.#onLine(line);
  }
}
