/**
 * Numbers as the 64-bit integers that C functions take.
 *
 * Why it is safe: no unsafe code here; whoever calls it has made sure that the number is what it should be.
 *
 * @module
 */

const cell = new DataView(new ArrayBuffer(8));

/**
 * `value`, a non-negative safe integer, for a parameter of 64 bits.
 *
 * What `BigInt(value)` gives at a fraction of the price: that is a call into the engine, which makes an object, while
 * compiled code passes the bits of the cell on to the C function as they are.
 */
export function word64(value: number): bigint {
  cell.setUint32(0, value, true);
  cell.setUint32(4, value / 2 ** 32, true);
  return cell.getBigUint64(0, true);
}
