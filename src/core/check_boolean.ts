/** Throws unless `value` is `true` or `false`. */
export function checkBoolean(value: unknown, what: string): void {
  if (typeof value !== "boolean") throw new TypeError(`${what} must be true or false, got ${String(value)}`);
}
