/**
 * The end of the stack, where exceptions come from where none are expected.
 *
 * @module
 */

/** Calls `act` with `depth` frames less than the stack has room for. */
export function near(limit: number, depth: number, act: () => void): void {
  const down = (left: number): void => left > 0 ? down(left - 1) : act();
  down(limit - depth);
}

/** How many frames of `near` there is room for here and now: compiled code has smaller ones. */
export function stackLimit(): number {
  const fits = (frames: number) => {
    try {
      near(frames, 0, () => {});
      return true;
    } catch {
      return false;
    }
  };
  let [low, high] = [0, 1 << 20];
  while (high - low > 1) {
    const middle = (low + high) >>> 1;
    if (fits(middle)) low = middle;
    else high = middle;
  }
  return low;
}
