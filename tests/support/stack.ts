/**
 * The end of the stack, where exceptions come from where none are expected.
 *
 * @module
 */

/**
 * Calls `act` where the stack has room for `words` words more and a little, and throws what it throws. The end is found by
 * going there and coming back, and not by counting beforehand: compiled code has smaller frames, and nobody knows when it
 * is compiled. Code that has never run is compiled first, which takes more room than anything: begin with many.
 */
export function near(words: number, act: () => void): void {
  const near: Near = { frames: Math.floor(words / FRAME), act, outcome: null };
  // Each argument takes a word of the stack: so everything below begins so much lower.
  const lower = (..._words: number[]) => descend(near);
  lower(...Array<number>(FRAME - words % FRAME).fill(0));
  // SAFETY: the compiler does not see that `descend` changes it.
  const outcome = near.outcome as Near["outcome"];
  if (outcome === null) throw new RangeError("The stack has no room for so many words");
  if (outcome.kind === "threw") throw outcome.error;
}

/** The same, and says whether `act` threw. */
export function throwsNearEnd(words: number, act: () => void): boolean {
  try {
    near(words, act);
    return false;
  } catch {
    return true;
  }
}

/** How many words a frame of a small function takes, roughly. */
export const FRAME = 16;

interface Near {
  readonly frames: number;
  readonly act: () => void;
  outcome: null | { readonly kind: "done" } | { readonly kind: "threw"; readonly error: unknown };
}

/** Goes down to the end of the stack, and acts on the way back. Returns how many frames lie below. */
function descend(near: Near): number {
  let below = 0;
  try {
    below = descend(near) + 1;
  } catch {
    // This is the last frame.
  }
  if (below < near.frames || near.outcome !== null) return below;
  try {
    near.act();
    near.outcome = { kind: "done" };
  } catch (error) {
    near.outcome = { kind: "threw", error };
  }
  return below;
}
