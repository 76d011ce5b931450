/** A promise would be work that goes on after the step, out of reach of undo. */
export function expectSync(result: unknown): void {
  if (!isThenable(result)) return;
  Promise.resolve(result).catch(() => {});
  throw new TypeError("A partition or DMA target must do its work synchronously, and this one returned a promise");
}

/** Whether `value` is a promise or works like one. */
export function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof value === "object" && value !== null && "then" in value && typeof value.then === "function";
}
