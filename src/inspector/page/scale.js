// Which address is where on the screen.

/** How much room there is for the names of strips, and on the right of them. */
const LABELS = 144;
export const MARGIN = 12;

/** A part of the axis, as the inspector describes it, and which part of that is on the screen. */
export class Scale {
  /** Pairs of place and address, between which both grow evenly. */
  #knots = [0, 0, 1, 2 ** 52];
  /** What is on the screen, in places. */
  from = 0;
  to = 1;
  /** The length of the whole axis, and which axis it is. */
  total = 1;
  layout = 0;
  kind = "folded";
  /** Where on the screen the axis begins and ends. */
  left = LABELS;
  right = LABELS + 50;

  /** Takes over how wide the screen is. */
  fitInto(width) {
    this.left = LABELS;
    this.right = Math.max(LABELS + 50, width - MARGIN);
  }

  /** Takes over what the inspector says. */
  update({ knots, total, layout }) {
    this.#knots = knots;
    this.total = total;
    this.layout = layout;
  }

  /** Boundaries on the screen, with the place on the screen of each. */
  *cuts() {
    for (let i = 0; i < this.#knots.length; i += 2) {
      const x = this.xOfPlace(this.#knots[i]);
      if (x >= this.left - 1 && x <= this.right + 1) yield { x, address: this.#knots[i + 1] };
    }
  }

  /** Whether there is no region between two boundaries: such a piece is of length 1, every other one is longer. */
  isFold(start, end) {
    return this.kind === "folded" && Math.abs(this.place(end) - this.place(start) - 1) < 1e-6;
  }

  xOfPlace(place) {
    return this.left + (place - this.from) / (this.to - this.from) * (this.right - this.left);
  }

  placeOfX(x) {
    return this.from + (x - this.left) / (this.right - this.left) * (this.to - this.from);
  }

  x(address) {
    return this.xOfPlace(this.place(address));
  }

  address(x) {
    return this.addressOfPlace(this.placeOfX(x));
  }

  place(address) {
    return interpolate(this.#knots, 1, address);
  }

  addressOfPlace(place) {
    return interpolate(this.#knots, 0, place);
  }

  /** Makes what is on the screen `factor` times as long, without moving what is at `x`. */
  zoom(factor, x) {
    const anchor = this.placeOfX(x);
    // A page is what there is to see.
    const bytes = this.addressOfPlace(this.to) - this.addressOfPlace(this.from);
    if (factor < 1) factor = Math.min(1, Math.max(factor, 4096 / bytes));
    const length = Math.min(this.total, (this.to - this.from) * factor);
    const part = (x - this.left) / (this.right - this.left);
    this.show(anchor - part * length, anchor + (1 - part) * length);
  }

  /** Shows from one place to another, moved so that both exist. */
  show(from, to) {
    const length = Math.min(this.total, to - from);
    this.from = Math.max(0, Math.min(from, this.total - length));
    this.to = this.from + length;
  }
}

/** Looks a value up in pairs; `by` is 0 for the first of each, 1 for the second. */
function interpolate(pairs, by, value) {
  let low = 0;
  let high = pairs.length / 2 - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (pairs[middle * 2 + by] <= value) low = middle;
    else high = middle;
  }
  const [a, b] = [pairs[low * 2 + by], pairs[high * 2 + by]];
  const [x, y] = [pairs[low * 2 + 1 - by], pairs[high * 2 + 1 - by]];
  // Beyond the ends things are as far as they would be if all went on evenly: off the screen, as a rule.
  return b === a ? x : x + (value - a) / (b - a) * (y - x);
}
