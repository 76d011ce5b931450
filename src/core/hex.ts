/** An address or a length the way this package prints it: hexadecimal with a `0x` prefix. */
export function hex(value: number): string {
  return value < 0 ? `-0x${(-value).toString(16)}` : `0x${value.toString(16)}`;
}
