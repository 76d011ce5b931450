/**
 * A serial port: the UART 16550A with the registers that Linux uses, both ways, with interrupts.
 *
 * @module
 */

import type { PortDevice } from "../pc/port_bus.ts";

/** Its ports and interrupt as the first serial port of a PC. */
export const COM1 = { port: 0x3f8, ports: 8, irq: 4 } as const;

/** The registers, by their offset; with the divisor latch on, the first two are the divisor. */
const REGISTER = {
  data: 0,
  enable: 1,
  identify: 2,
  line: 3,
  modem: 4,
  lineStatus: 5,
  modemStatus: 6,
  scratch: 7,
} as const;

const ENABLE = { received: 1, sent: 2 } as const;
const IDENTITY = { none: 1, sent: 2, received: 4 } as const;
const LINE_DIVISOR = 0x80;
const MODEM_LOOPBACK = 0x10;
/** What is sent is gone at once, so there is always room. */
const STATUS = { received: 1, ready: 0x60 } as const;
const CONNECTED = 0xb0;
const FIFO_ENABLE = 1;
const HAS_FIFO = 0xc0;

/** What a serial port is like at one moment. */
export interface UartState {
  /** The registers. */
  readonly registers: Uint8Array;
  /** What was typed and not read. */
  readonly input: Uint8Array;
  /** Whether FIFOs are on, and whether it has yet to say that it has sent. */
  readonly flags: readonly [hasFifo: boolean, hasSent: boolean];
}

/** The serial port. */
export class Uart implements PortDevice {
  readonly #onByte: (byte: number) => void;
  readonly #setIrq: (level: boolean) => void;
  readonly #registers = new Uint8Array(8);
  readonly #input: number[] = [];
  #hasFifo = false;
  #hasSent = false;
  #level = false;

  /** `onByte` is told what the guest sends; `setIrq` sets its interrupt line. */
  constructor(onByte: (byte: number) => void, setIrq: (level: boolean) => void) {
    this.#onByte = onByte;
    this.#setIrq = setIrq;
  }

  /** Types something, as if at a terminal. */
  type(bytes: Iterable<number>): void {
    for (const byte of bytes) this.#input.push(byte);
    this.#update();
  }

  /** What it is like now. */
  saveState(): UartState {
    return {
      registers: this.#registers.slice(),
      input: new Uint8Array(this.#input),
      flags: [this.#hasFifo, this.#hasSent],
    };
  }

  /** Makes it what another one was like. */
  restoreState({ registers, input, flags: [hasFifo, hasSent] }: UartState): void {
    this.#registers.set(registers);
    this.#input.splice(0, Infinity, ...input);
    this.#hasFifo = hasFifo;
    this.#hasSent = hasSent;
    // The interrupt controller knows of it already.
    this.#level = this.#identity !== IDENTITY.none;
  }

  /** The guest reads a register. */
  read(port: number): number {
    const register = port - COM1.port;
    const value = this.#read(register);
    this.#update();
    return value;
  }

  /** The guest writes one. */
  write(port: number, _size: number, value: number): void {
    const register = port - COM1.port;
    if (register === REGISTER.data && !this.#isLatched) {
      if ((this.#registers[REGISTER.modem] ?? 0) & MODEM_LOOPBACK) this.#input.push(value);
      else this.#onByte(value);
      this.#hasSent = true;
    } else if (register === REGISTER.enable) {
      if (!this.#isLatched) this.#registers[register] = value & 0xf;
      // Asking to be told of an empty sender tells at once.
      if (!this.#isLatched) this.#hasSent = (value & ENABLE.sent) !== 0;
    } else if (register === REGISTER.identify) {
      this.#hasFifo = (value & FIFO_ENABLE) !== 0;
    } else {
      this.#registers[register] = value;
    }
    this.#update();
  }

  get #isLatched(): boolean {
    return ((this.#registers[REGISTER.line] ?? 0) & LINE_DIVISOR) !== 0;
  }

  get #identity(): number {
    const enabled = this.#registers[REGISTER.enable] ?? 0;
    if (enabled & ENABLE.received && this.#input.length > 0) return IDENTITY.received;
    return enabled & ENABLE.sent && this.#hasSent ? IDENTITY.sent : IDENTITY.none;
  }

  /** In loopback, what it says itself comes back: ready to send as clear to send, and so on. */
  get #modemStatus(): number {
    const modem = this.#registers[REGISTER.modem] ?? 0;
    if ((modem & MODEM_LOOPBACK) === 0) return CONNECTED;
    return (modem & 2) << 3 | (modem & 1) << 5 | (modem & 0xc) << 4;
  }

  #read(register: number): number {
    switch (register) {
      case REGISTER.data:
        return this.#isLatched ? 1 : this.#input.shift() ?? 0;
      case REGISTER.enable:
        return this.#isLatched ? 0 : this.#registers[register] ?? 0;
      case REGISTER.identify: {
        const identity = this.#identity;
        if (identity === IDENTITY.sent) this.#hasSent = false;
        return identity | (this.#hasFifo ? HAS_FIFO : 0);
      }
      case REGISTER.lineStatus:
        return STATUS.ready | (this.#input.length > 0 ? STATUS.received : 0);
      case REGISTER.modemStatus:
        return this.#modemStatus;
      default:
        return this.#registers[register] ?? 0;
    }
  }

  #update(): void {
    const level = this.#identity !== IDENTITY.none;
    if (level === this.#level) return;
    this.#level = level;
    this.#setIrq(level);
  }
}
