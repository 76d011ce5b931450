/**
 * The byte code of ACPI (AML), as much of it as it takes to declare devices.
 *
 * Specified in chapter 20 of the ACPI specification.
 *
 * @module
 */

/** An integer. */
export function integer(value: number): number[] {
  if (value === 0 || value === 1) return [value];
  const size = value < 0x100 ? 1 : value < 0x1_0000 ? 2 : 4;
  const prefix = { 1: 0x0a, 2: 0x0b, 4: 0x0c }[size];
  return [prefix, ...bytesOf(value, size)];
}

/** A string of ASCII. */
export function string(text: string): number[] {
  return [0x0d, ...new TextEncoder().encode(text), 0];
}

/** Something with a name of at most four characters. */
export function named(name: string, value: readonly number[]): number[] {
  return [0x08, ...segment(name), ...value];
}

/** A list of values. */
export function list(...values: readonly number[][]): number[] {
  return [0x12, ...withLength([values.length, ...values.flat()])];
}

/** A device. */
export function device(name: string, ...content: readonly number[][]): number[] {
  return [0x5b, 0x82, ...withLength([...segment(name), ...content.flat()])];
}

/** Things below a name that is there already: `\_SB` for devices. */
export function scope(name: string, ...content: readonly number[][]): number[] {
  return [0x10, ...withLength([0x5c, ...segment(name), ...content.flat()])];
}

/** Resources of a device. */
export function resources(...descriptors: readonly number[][]): number[] {
  const bytes = [...descriptors.flat(), 0x79, 0];
  return [0x11, ...withLength([...integer(bytes.length), ...bytes])];
}

/** A range of addresses below 4 GiB that it answers at. */
export function memory32(start: number, length: number): number[] {
  return [0x86, 9, 0, 1, ...bytesOf(start, 4), ...bytesOf(length, 4)];
}

/** An interrupt of its own: level-triggered, active high. */
export function interrupt(number: number): number[] {
  return [0x89, 6, 0, 1, 1, ...bytesOf(number, 4)];
}

function segment(name: string): Uint8Array {
  return new TextEncoder().encode(name.padEnd(4, "_"));
}

function bytesOf(value: number, size: number): number[] {
  return Array.from({ length: size }, (_, i) => Math.floor(value / 2 ** (8 * i)) & 0xff);
}

/** With its length in front, which counts itself. */
function withLength(content: readonly number[]): number[] {
  for (let extra = 0; extra < 4; extra++) {
    const length = content.length + 1 + extra;
    if (extra === 0 && length < 0x40) return [length, ...content];
    if (extra > 0 && length < 2 ** (4 + 8 * extra)) {
      return [extra << 6 | length & 0xf, ...bytesOf(Math.floor(length / 16), extra), ...content];
    }
  }
  throw new RangeError(`${content.length} bytes are too many for one object`);
}
