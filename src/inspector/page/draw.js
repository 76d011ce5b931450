// The strips, on a canvas that is as large as what is on the screen: only that is drawn.

import { hex, size } from "./api.js";
import { MARGIN } from "./scale.js";

const AXIS = 54;
const LANE = 26;
const GAP = 7;
/** Between what the guest sees, what is behind it, and who was told. */
const GROUPS = { seen: 0, differences: 0, was: 0, layer: 1, devices: 1, heat: 0 };

/** Draws lanes, and knows what is where. */
export class Strips {
  lanes = [];
  /** Where the cursor is: a lane's key and an address. */
  cursor = null;
  hover = null;
  #tops = [];

  constructor(canvas, scroller, spacer, scale) {
    this.canvas = canvas;
    this.scroller = scroller;
    this.spacer = spacer;
    this.scale = scale;
    this.g = canvas.getContext("2d");
  }

  /** Takes over lanes. */
  update(lanes) {
    this.lanes = lanes;
    let top = AXIS + 6;
    let group = 0;
    this.#tops = lanes.map(({ kind }) => {
      const own = GROUPS[kind] ?? 2;
      if (own !== group) top += 12;
      group = own;
      const at = top;
      top += LANE + GAP;
      return at;
    });
    this.spacer.style.height = `${Math.max(top + 8, 1)}px`;
  }

  /** The lane at a height of the screen. */
  laneAt(y) {
    const at = y + this.scroller.scrollTop;
    const i = this.#tops.findIndex((top) => at >= top && at < top + LANE);
    return this.lanes[i] ?? null;
  }

  /** The piece of a lane at an address. */
  pieceAt(lane, address) {
    return lane?.pieces.find(([start, end]) => start <= address && address < end) ?? null;
  }

  /** The next edge of a piece in the lane of the cursor, to the right or, with -1, to the left; `null` for none. */
  nextEdge(direction) {
    const lane = this.lanes.find(({ key }) => key === this.cursor?.lane) ?? this.lanes[0];
    const here = this.cursor?.gpa ?? 0;
    const edges = (lane?.pieces ?? []).flatMap(([start, end]) => [start, end]);
    const next = direction > 0
      ? edges.filter((edge) => edge > here).reduce((a, b) => Math.min(a, b), Infinity)
      : edges.filter((edge) => edge < here).reduce((a, b) => Math.max(a, b), -Infinity);
    return Number.isFinite(next) ? { lane: lane.key, gpa: next } : null;
  }

  /** Draws everything that is on the screen. */
  draw(looks) {
    const { canvas, scroller, scale, g } = this;
    const ratio = devicePixelRatio || 1;
    const [width, height] = [scroller.clientWidth, scroller.clientHeight];
    if (width === 0) return;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    scale.fitInto(width);
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.fillStyle = looks.ground;
    g.fillRect(0, 0, width, height);
    g.font = FONT;
    g.textBaseline = "middle";
    const scroll = scroller.scrollTop;
    this.#guides(looks, height);
    this.lanes.forEach((lane, i) => {
      const y = this.#tops[i] - scroll;
      if (y + LANE < AXIS || y > height) return;
      this.#lane(looks, lane, y);
    });
    // What scrolls below the axis is covered by it.
    g.fillStyle = looks.ground;
    g.fillRect(0, 0, width, AXIS);
    this.#axis(looks, width);
    this.#cursor(looks, height);
  }

  #lane(looks, lane, y) {
    const { g, scale } = this;
    const isCurrent = this.cursor?.lane === lane.key;
    g.fillStyle = isCurrent ? looks.text : looks.faint;
    g.font = isCurrent ? BOLD : FONT;
    g.textAlign = "left";
    const isPriority = lane.kind === "layer";
    g.fillText(
      fitted(g, isPriority ? `priority ${lane.label}` : lane.label, scale.left - MARGIN - 6),
      MARGIN,
      y + LANE / 2,
    );
    g.font = FONT;
    g.fillStyle = looks.lane;
    g.fillRect(scale.left, y, scale.right - scale.left, LANE);
    g.save();
    g.beginPath();
    g.rect(scale.left, y - 2, scale.right - scale.left, LANE + 4);
    g.clip();
    for (const piece of lane.pieces) this.#piece(looks, lane, piece, y);
    g.restore();
  }

  #piece(looks, lane, piece, y) {
    const { g, scale } = this;
    const [start, end, look, text] = piece;
    const x = scale.x(start);
    const right = scale.x(end);
    if (right < scale.left || x > scale.right) return;
    const from = Math.max(x, scale.left - 4);
    const to = Math.max(from + 1.5, Math.min(right, scale.right + 4));
    if (look === "heat") return looks.draw(g, look, 0, from, y, to - from, LANE, Number(text));
    const hue = looks.hueOf(text);
    looks.draw(g, look, hue, from, y, to - from, LANE);
    // Neighbours are apart, whatever they look like.
    g.fillStyle = looks.ground;
    if (to - from > 3) g.fillRect(to - 1, y, 1, LANE);
    const room = Math.min(to, scale.right) - Math.max(from, scale.left) - 8;
    if (room < 9 || text === "") return;
    const shown = labelFor(g, text, room);
    if (shown === "") return;
    const width = g.measureText(shown).width;
    const middle = (Math.max(from, scale.left) + Math.min(to, scale.right)) / 2;
    if (look !== "writable") {
      g.fillStyle = look === "difference" ? "transparent" : lane.kind === "partition" ? looks.lane : looks.ground;
      g.fillRect(middle - width / 2 - 4, y + 5, width + 8, LANE - 10);
    }
    g.fillStyle = look === "hidden" || look === "unmapped" || look === "hole" ? looks.faint : looks.text;
    if (look === "difference") {
      g.fillStyle = looks.strong;
      g.font = BOLD;
    }
    g.textAlign = "center";
    g.fillText(shown, middle, y + LANE / 2 + 0.5);
    g.font = FONT;
  }

  /** Lines through all strips, and what is folded. */
  #guides(looks, height) {
    const { g, scale } = this;
    let last = null;
    let drawn = -Infinity;
    for (const { x, address } of scale.cuts()) {
      if (x - drawn >= 6) {
        g.fillStyle = looks.line;
        g.fillRect(Math.round(x), AXIS, 1, height - AXIS);
        drawn = x;
      }
      if (last !== null && scale.isFold(last.address, address) && x - last.x > 3) this.#fold(looks, last.x, x, height);
      last = { x, address };
    }
  }

  #fold(looks, from, to, height) {
    const { g } = this;
    g.strokeStyle = looks.line;
    g.lineWidth = 1;
    g.beginPath();
    const middle = (Math.max(from, this.scale.left) + Math.min(to, this.scale.right)) / 2;
    for (const shift of [-2, 2]) {
      for (let y = AXIS, side = -2; y < height; y += 6, side = -side) {
        if (y === AXIS) g.moveTo(middle + shift + side, y);
        else g.lineTo(middle + shift + side, y);
      }
    }
    g.stroke();
  }

  /** The addresses: as many as there is room for, boundaries first. */
  #axis(looks, width) {
    const { g, scale } = this;
    g.font = SMALL;
    const rows = [[], []];
    const put = (x, address, level) => {
      const text = address === 2 ** 52 ? "2^52" : hex(address);
      const length = g.measureText(text).width;
      const left = Math.min(Math.max(x + 3, scale.left - MARGIN), width - length - 2);
      if (rows[level].some(([a, b]) => left < b + 8 && a < left + length + 8)) return false;
      rows[level].push([left, left + length]);
      const top = level === 0 ? 22 : 5;
      g.fillStyle = looks.text;
      g.textAlign = "left";
      g.fillText(text, left, top + 6);
      g.fillStyle = looks.faint;
      g.fillRect(Math.round(x), top, 1, AXIS - top);
      return true;
    };
    const cuts = [...scale.cuts()];
    // Those with more room around them are more likely to be wanted.
    const gaps = cuts.map(({ x }, i) => Math.max(x - (cuts[i - 1]?.x ?? -1e6), (cuts[i + 1]?.x ?? 1e6) - x));
    const order = cuts.map((_, i) => i).sort((a, b) => gaps[b] - gaps[a]);
    for (const i of order) {
      const { x, address } = cuts[i];
      if (put(x, address, 0) || put(x, address, 1) || gaps[i] < 4) continue;
      g.fillStyle = looks.faint;
      g.fillRect(Math.round(x), AXIS - 6, 1, 6);
    }
    for (let i = 0; i + 1 < cuts.length; i++) {
      const [a, b] = [cuts[i], cuts[i + 1]];
      const between = b.address - a.address;
      if (b.x - a.x > 240) { for (const address of rounds(a, b)) put(scale.x(address), address, 1); }
      if (b.x - a.x < 42 || between <= 0) continue;
      const x = (Math.max(a.x, scale.left) + Math.min(b.x, scale.right)) / 2;
      g.fillStyle = looks.faint;
      g.textAlign = "center";
      g.fillText(size(Math.round(between)), x, AXIS - 8);
    }
  }

  #cursor(looks, height) {
    const { g, scale } = this;
    for (const [at, colour, dash] of [[this.hover, looks.faint, [2, 3]], [this.cursor, looks.strong, []]]) {
      if (at === null) continue;
      const x = Math.round(scale.x(at.gpa)) + 0.5;
      if (x < scale.left - 1 || x > scale.right + 1) continue;
      g.strokeStyle = colour;
      g.lineWidth = 1;
      g.setLineDash(dash);
      g.beginPath();
      g.moveTo(x, AXIS - 8);
      g.lineTo(x, height);
      g.stroke();
      g.setLineDash([]);
    }
    const i = this.lanes.findIndex(({ key }) => key === this.cursor?.lane);
    const piece = this.cursor === null ? null : this.pieceAt(this.lanes[i], this.cursor.gpa);
    if (piece === null) return;
    const y = this.#tops[i] - this.scroller.scrollTop;
    const from = Math.max(scale.x(piece[0]), scale.left - 4);
    const to = Math.min(scale.x(piece[1]), scale.right + 4);
    g.save();
    g.beginPath();
    g.rect(scale.left - 2, AXIS, scale.right - scale.left + 4, height);
    g.clip();
    g.strokeStyle = looks.strong;
    g.lineWidth = 2;
    g.strokeRect(from - 1, y - 1, Math.max(3, to - from + 1), LANE + 2);
    g.restore();
  }

  /** Scrolls so that a lane can be seen. */
  reveal(key) {
    const i = this.lanes.findIndex((lane) => lane.key === key);
    const { scroller } = this;
    const top = this.#tops[i];
    if (top === undefined) return;
    if (top - AXIS - 6 < scroller.scrollTop) scroller.scrollTop = top - AXIS - 6;
    else if (top + LANE + 6 > scroller.scrollTop + scroller.clientHeight) {
      scroller.scrollTop = top + LANE + 6 - scroller.clientHeight;
    }
  }
}

const FAMILY = 'system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
const FONT = `11.5px ${FAMILY}`;
const BOLD = `600 12px ${FAMILY}`;
const SMALL = '11px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace';

/** Round addresses between two boundaries, a hundred pixels and more apart. */
function* rounds(a, b) {
  const each = (b.address - a.address) / (b.x - a.x);
  const step = Math.max(1, 2 ** Math.ceil(Math.log2(110 * each)));
  for (let at = Math.ceil(a.address / step) * step; at < b.address; at += step) if (at > a.address) yield at;
}

/** What to write into a piece: all there is to say, the name of its region, or the part of it that tells most. */
function labelFor(g, text, room) {
  const [name] = text.split(" · ", 1);
  const whole = [text, name].find((text) => g.measureText(text).width <= room);
  if (whole !== undefined) return whole;
  const cut = fitted(g, name, room);
  const end = name.slice(name.lastIndexOf(" ") + 1);
  if (cut.length < 8 && end.length > 2 && g.measureText(end).width <= room) return end;
  return cut.length > 3 ? cut : "";
}

/** As much of a text as there is room for. */
function fitted(g, text, room) {
  if (g.measureText(text).width <= room) return text;
  let [low, high] = [0, text.length];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (g.measureText(`${text.slice(0, middle)}…`).width <= room) low = middle;
    else high = middle - 1;
  }
  return low === 0 ? "" : `${text.slice(0, low)}…`;
}
