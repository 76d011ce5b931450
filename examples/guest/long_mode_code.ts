/**
 * A few instructions of x86-64, enough to write guest programs that can be read.
 *
 * ```ts
 * const code = new LongModeCode()
 *   .set("rbx", 0x20_0000)
 *   .label("again")
 *   .load("rax", "rbx", 4)
 *   .out(0x10)
 *   .jump("again")
 *   .bytes();
 * ```
 *
 * @module
 */

const REGISTERS = [
  ...["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"] as const,
  ...["r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"] as const,
] as const;

/** A 64-bit general register. `rsp` and `r12` cannot be used as an address. */
export type Register = typeof REGISTERS[number];

/** The condition of a jump, after `cmp a, b`: a equals b, differs, is below or above it (unsigned). */
export type Condition = "equal" | "notEqual" | "below" | "aboveOrEqual" | "above" | "belowOrEqual";

const CONDITION_CODE: Readonly<Record<Condition, number>> = {
  below: 0x2,
  aboveOrEqual: 0x3,
  equal: 0x4,
  notEqual: 0x5,
  belowOrEqual: 0x6,
  above: 0x7,
};

const REX = 0x40;
const REX_W = 0x48;

/** 64-bit code in the making. The code runs wherever it is put: all jumps are relative. */
export class LongModeCode {
  #code: number[] = [];
  #labels = new Map<string, number>();
  #jumps: { at: number; label: string }[] = [];

  /** Sets a register to a number, which may be any 64-bit value. */
  set(register: Register, value: number | bigint): this {
    const r = REGISTERS.indexOf(register);
    return this.raw(REX_W | (r >> 3), 0xb8 | (r & 7)).#number(BigInt(value), 8);
  }

  /** Copies a register. */
  move(to: Register, from: Register): this {
    return this.#registers(0x89, from, to);
  }

  /** Adds one register to another. */
  addRegister(to: Register, from: Register): this {
    return this.#registers(0x01, from, to);
  }

  /** Adds a number that fits 31 bits. */
  add(register: Register, value: number): this {
    return this.#withNumber(0, register, value);
  }

  /** Takes a number that fits 31 bits away, and sets the flags. */
  subtract(register: Register, value: number): this {
    return this.#withNumber(5, register, value);
  }

  /** Compares a register with a number that fits 31 bits. */
  compare(register: Register, value: number): this {
    return this.#withNumber(7, register, value);
  }

  /** Compares two registers. */
  compareRegister(a: Register, b: Register): this {
    return this.#registers(0x39, b, a);
  }

  /** Loads 1, 4 or 8 bytes from the address in `base` plus `offset`; the rest of the register becomes 0. */
  load(to: Register, base: Register, size: 1 | 4 | 8, offset = 0): this {
    if (size === 1) return this.#memory([0x0f, 0xb6], to, base, offset, false);
    return this.#memory([0x8b], to, base, offset, size === 8);
  }

  /** Stores the low 1, 4 or 8 bytes of a register at the address in `base` plus `offset`. */
  store(base: Register, from: Register, size: 1 | 4 | 8, offset = 0): this {
    return this.#memory([size === 1 ? 0x88 : 0x89], from, base, offset, size === 8);
  }

  /** Adds `from` to the 8 bytes at the address in `base`, atomically. */
  atomicAdd(base: Register, from: Register): this {
    return this.raw(0xf0).#memory([0x01], from, base, 0, true);
  }

  /** Writes EAX to a port. Changes RDX. */
  out(port: number): this {
    return this.raw(0xba).#number(BigInt(port), 4).raw(0xef);
  }

  /** Reads a port into EAX. Changes RDX. */
  in(port: number): this {
    return this.raw(0xba).#number(BigInt(port), 4).raw(0xed);
  }

  /** Names this place, for jumps. */
  label(name: string): this {
    if (this.#labels.has(name)) throw new RangeError(`Label "${name}" is there twice`);
    this.#labels.set(name, this.#code.length);
    return this;
  }

  /** Goes on at a label. */
  jump(label: string): this {
    return this.raw(0xe9).#target(label);
  }

  /** Goes on at a label if the last comparison came out so. */
  jumpIf(condition: Condition, label: string): this {
    return this.raw(0x0f, 0x80 | CONDITION_CODE[condition]).#target(label);
  }

  /** Tells the processor that this is a loop that waits. */
  pause(): this {
    return this.raw(0xf3, 0x90);
  }

  /** Bytes as they are. */
  raw(...bytes: readonly number[]): this {
    this.#code.push(...bytes);
    return this;
  }

  /** The finished code. */
  bytes(): Uint8Array<ArrayBuffer> {
    const code = new Uint8Array(this.#code);
    const view = new DataView(code.buffer);
    for (const { at, label } of this.#jumps) {
      const target = this.#labels.get(label);
      if (target === undefined) throw new RangeError(`There is no label "${label}"`);
      view.setInt32(at, target - (at + 4), true);
    }
    return code;
  }

  #registers(opcode: number, reg: Register, rm: Register): this {
    const [a, b] = [REGISTERS.indexOf(reg), REGISTERS.indexOf(rm)];
    return this.raw(REX_W | (a >> 3 << 2) | (b >> 3), opcode, 0xc0 | ((a & 7) << 3) | (b & 7));
  }

  #withNumber(operation: number, register: Register, value: number): this {
    if (!Number.isInteger(value) || Math.abs(value) >= 2 ** 31) throw new RangeError(`${value} does not fit 31 bits`);
    const r = REGISTERS.indexOf(register);
    return this.raw(REX_W | (r >> 3), 0x81, 0xc0 | (operation << 3) | (r & 7)).#number(BigInt(value), 4);
  }

  #memory(opcode: readonly number[], reg: Register, base: Register, offset: number, wide: boolean): this {
    const [a, b] = [REGISTERS.indexOf(reg), REGISTERS.indexOf(base)];
    // These two need one more byte than is encoded here.
    if ((b & 7) === 4) throw new RangeError(`${base} cannot be used as an address`);
    const prefix = (wide ? REX_W : REX) | (a >> 3 << 2) | (b >> 3);
    return this.raw(prefix, ...opcode, 0x80 | ((a & 7) << 3) | (b & 7)).#number(BigInt(offset), 4);
  }

  #target(label: string): this {
    this.#jumps.push({ at: this.#code.length, label });
    return this.#number(0n, 4);
  }

  /** Little-endian, cut to `size` bytes. */
  #number(value: bigint, size: number): this {
    for (let i = 0; i < size; i++) this.#code.push(Number((value >> BigInt(8 * i)) & 0xffn));
    return this;
  }
}
