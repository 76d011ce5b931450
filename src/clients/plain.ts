/**
 * For `JSON.stringify`: what JSON would change silently is refused, or kept apart from what it would become.
 *
 * @throws {TypeError} If the value is none that a request can carry.
 */
export function plain(key: string, value: unknown): unknown {
  switch (typeof value) {
    case "bigint":
    case "symbol":
    case "function":
      throw new TypeError(`"${key}" is a ${typeof value}, which a request cannot carry`);
    case "number":
      // JSON has no others: as text they are refused by whoever expects a number, and named as what they are.
      return Number.isFinite(value) ? value : String(value);
    default:
      return value;
  }
}
