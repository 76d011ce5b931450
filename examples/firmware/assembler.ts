/**
 * Enough of an assembler for a boot sector: 16-bit x86 code with labels, in which EAX does the work.
 *
 * Memory is reached through FS with 32-bit addresses, relative to EBX. `bigRealMode` makes that possible: a segment
 * loaded in protected mode keeps its length of 4 GiB in real mode.
 *
 * @module
 */

/** The registers, by the numbers that instructions have for them. */
export const EAX = 0, ECX = 1, EDX = 2, EBX = 3, ESP = 4, EBP = 5, EDI = 7;
/** One of them. */
export type Register = 0 | 1 | 2 | 3 | 4 | 5 | 7;

/** Code in the making. Methods stand for instructions, in the order of the calls. */
export class Assembler {
  readonly #origin: number;
  readonly #code: number[] = [];
  readonly #labels = new Map<string, number>();
  readonly #uses: { readonly at: number; readonly label: string; readonly relative: boolean }[] = [];

  /** `origin` is the address in its segment at which the code will be. */
  constructor(origin: number) {
    this.#origin = origin;
  }

  /** Gives this place a name. */
  label(name: string): this {
    if (this.#labels.has(name)) throw new TypeError(`There are two labels "${name}"`);
    this.#labels.set(name, this.#origin + this.#code.length);
    return this;
  }

  /** Bytes as they are. */
  bytes(...bytes: readonly number[]): this {
    this.#code.push(...bytes);
    return this;
  }

  /** Text, and a zero after it. */
  text(text: string): this {
    return this.bytes(...new TextEncoder().encode(text), 0);
  }

  /** Zeros up to an offset from the start of the code. */
  padTo(offset: number): this {
    const missing = offset - this.#code.length;
    if (missing < 0) throw new RangeError(`The code is ${-missing} bytes longer than ${offset}`);
    return this.bytes(...new Array<number>(missing).fill(0));
  }

  /** Sets a 32-bit register. */
  set(register: Register, value: number): this {
    return this.bytes(0x66, 0xb8 + register, ...little(value, 4));
  }

  /** Sets a register's lower half, which has the name without the E. */
  set16(register: Register, value: number): this {
    return this.bytes(0xb8 + register, ...little(value, 2));
  }

  /** Copies EAX. */
  copyTo(register: Register): this {
    return this.bytes(0x66, 0x89, 0xc0 + register);
  }

  /** Copies to EAX. */
  copyFrom(register: Register): this {
    return this.bytes(0x66, 0x89, 0xc0 + 8 * register);
  }

  /** Turns over all bits of EAX. */
  not(): this {
    return this.bytes(0x66, 0xf7, 0xd0);
  }

  /** Loads EAX from EBX + `offset`. */
  load(offset = 0): this {
    return this.bytes(0x64, 0x66, 0x67, 0x8b, 0x83, ...little(offset, 4));
  }

  /** Stores EAX at EBX + `offset`. */
  store(offset = 0): this {
    return this.bytes(0x64, 0x66, 0x67, 0x89, 0x83, ...little(offset, 4));
  }

  /** Compares EAX with a number. */
  compare(value: number): this {
    return this.bytes(0x66, 0x3d, ...little(value, 4));
  }

  /** Compares EAX with a register. */
  compareWith(register: Register): this {
    return this.bytes(0x66, 0x39, 0xc0 + 8 * register);
  }

  /** Reads a port into EAX. Changes DX. */
  in32(port: number): this {
    return this.bytes(0xba, ...little(port, 2), 0x66, 0xed);
  }

  /** Writes EAX to a port. Changes DX. */
  out32(port: number): this {
    return this.bytes(0xba, ...little(port, 2), 0x66, 0xef);
  }

  /** Writes AL to a port. Changes DX. */
  out8(port: number): this {
    return this.bytes(0xba, ...little(port, 2), 0xee);
  }

  /** Writes text to a port, by way of `print`. Changes AX, DX and SI. */
  print(text: string): this {
    return this.call("print").text(text);
  }

  /** The subroutine behind `print`: what is to be printed stands after the call. */
  printTo(port: number): this {
    return this.label("print").bytes(0x5e) // pop si
      .label("next character").bytes(0xac, 0x84, 0xc0).jumpIfEqual("printed") // lodsb; test al, al
      .out8(port).jump("next character")
      .label("printed").bytes(0x56).return(); // push si
  }

  /** Calls the BIOS. */
  interrupt(number: number): this {
    return this.bytes(0xcd, number);
  }

  /** Goes to a label. */
  jump(label: string): this {
    return this.bytes(0xe9).#use(label, true);
  }

  /** Goes to a label if the last comparison found a difference. */
  jumpIfDifferent(label: string): this {
    return this.bytes(0x0f, 0x85).#use(label, true);
  }

  /** Goes to a label if the last comparison found none. */
  jumpIfEqual(label: string): this {
    return this.bytes(0x0f, 0x84).#use(label, true);
  }

  /** Goes to a label if the BIOS says that it failed. */
  jumpIfCarry(label: string): this {
    return this.bytes(0x0f, 0x82).#use(label, true);
  }

  /** Calls a label, whose code ends in `return`. */
  call(label: string): this {
    return this.bytes(0xe8).#use(label, true);
  }

  /** Goes back to after the call. */
  return(): this {
    return this.bytes(0xc3);
  }

  /** Makes FS all of the first 4 GiB. `table` labels a descriptor table as `flatSegment` makes it. Changes EAX, BX. */
  bigRealMode(table: string): this {
    return this.bytes(0xfa, 0x0f, 0x01, 0x16).#use(table, false) // cli; lgdt [table]
      .bytes(0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0) // protected mode on, by CR0
      .set16(EBX, 8).bytes(0x8e, 0xe3) // fs = the first descriptor
      .bytes(0x24, 0xfe, 0x0f, 0x22, 0xc0); // and off
  }

  /** A descriptor table with one segment: data, from 0, 4 GiB long. The null descriptor tells where the table is. */
  flatSegment(label: string): this {
    return this.label(label).bytes(...little(2 * 8 - 1, 2)).#use(label, false).bytes(0, 0, 0, 0)
      .bytes(0xff, 0xff, 0, 0, 0, 0x92, 0xcf, 0);
  }

  /** The finished code. */
  assemble(): Uint8Array<ArrayBuffer> {
    const code = new Uint8Array(this.#code);
    for (const { at, label, relative } of this.#uses) {
      const address = this.#labels.get(label);
      if (address === undefined) throw new TypeError(`There is no label "${label}"`);
      code.set(little(relative ? address - (this.#origin + at + 2) : address, 2), at);
    }
    return code;
  }

  #use(label: string, relative: boolean): this {
    this.#uses.push({ at: this.#code.length, label, relative });
    return this.bytes(0, 0);
  }
}

function little(value: number, size: number): number[] {
  return Array.from({ length: size }, (_, i) => Math.floor(value / 0x100 ** i) & 0xff);
}
