/**
 * Signals that end a wait. They are the caller's: what is handed in may be none, or have properties that hide its methods.
 *
 * @module
 */

const { addEventListener, removeEventListener } = AbortSignal.prototype;

/**
 * Throws unless `signal` is one that has not aborted, or there is none.
 *
 * @throws {TypeError} If it is something else.
 * @throws Its reason, if it has aborted.
 */
export function checkSignal(signal: unknown): void {
  if (signal === undefined) return;
  if (!(signal instanceof AbortSignal)) throw new TypeError("signal must be an AbortSignal");
  signal.throwIfAborted();
}

/**
 * Calls `act` when `signal` aborts, until the result is disposed. To be called before anything that has to be undone.
 *
 * @throws {TypeError} If it is no signal.
 */
export function onAbort(signal: AbortSignal | undefined, act: () => void): Disposable {
  if (signal === undefined) return { [Symbol.dispose]() {} };
  addEventListener.call(signal, "abort", act);
  return { [Symbol.dispose]: () => removeEventListener.call(signal, "abort", act) };
}
