// How pieces look. Every look has a pattern of its own, so that none is told by its colour alone.

const HUES = [255, 75, 330, 145, 195, 35];

/** What each look means, in the order of the legend. */
export const MEANINGS = {
  "writable": "writable",
  "read-only": "read-only",
  "hidden": "hidden by a higher priority",
  "hole": "hole: nothing behind it",
  "unmapped": "region not mapped",
  "slot-rw": "slot, read-write",
  "slot-ro": "slot, read-only",
  "dma": "DMA mapping",
  "locked": "locked",
  "client": "region of a client",
  "lost": "out of step: an undo failed",
  "difference": "+ appeared   − vanished   ≠ other memory   w access",
  "heat": "how much of it is in memory, or was written",
  "many": "too much to tell apart: zoom in",
};

/** Colours and patterns for light or dark. */
export class Looks {
  #families = new Map();
  #patterns = new Map();

  constructor(isDark) {
    this.isDark = isDark;
    const pick = (light, dark) => isDark ? dark : light;
    this.ground = pick("#fbfbfa", "#16181c");
    this.lane = pick("#f1f2f4", "#1d2026");
    this.text = pick("#1b1e24", "#e4e6ea");
    this.faint = pick("#5c6470", "#9aa3b0");
    this.line = pick("#d9dce1", "#343a44");
    this.strong = pick("#0b57d0", "#8ab4f8");
    this.bad = pick("#b3261e", "#f2918a");
    this.gray = pick("#aeb4bd", "#5a6270");
  }

  /** The hue of a region: what belongs together by the first word of its name has the same. */
  hueOf(text) {
    const family = text.split(/[ ·]/, 1)[0];
    let hue = this.#families.get(family);
    if (hue === undefined) {
      hue = HUES[this.#families.size % HUES.length];
      this.#families.set(family, hue);
    }
    return hue;
  }

  fill(hue) {
    return this.isDark ? `oklch(0.47 0.095 ${hue})` : `oklch(0.85 0.075 ${hue})`;
  }

  ink(hue) {
    return this.isDark ? `oklch(0.8 0.1 ${hue})` : `oklch(0.5 0.12 ${hue})`;
  }

  /** Draws a piece of a look; `strength` is that of heat. */
  draw(g, look, hue, x, y, w, h, strength = 0) {
    const inner = Math.max(0, w - 1);
    const band = (top, height) => g.fillRect(x, y + top, w, height);
    switch (look) {
      case "writable":
        g.fillStyle = this.fill(hue);
        g.fillRect(x, y, w, h);
        break;
      case "read-only":
        g.fillStyle = this.#pattern(g, "stripes", this.ink(hue), 0.42);
        g.fillRect(x, y, w, h);
        frame(g, this.ink(hue), x, y, inner, h);
        break;
      case "hidden":
        g.fillStyle = this.#pattern(g, "dots", this.ink(hue), 0.6);
        g.fillRect(x, y, w, h);
        break;
      case "hole":
        frame(g, this.ink(hue), x, y, inner, h, [1, 3]);
        break;
      case "unmapped":
        frame(g, this.ink(hue), x, y, inner, h, [6, 4]);
        break;
      case "slot-rw":
        g.fillStyle = this.gray;
        band(h / 2 - 5, 2);
        band(h / 2 + 3, 2);
        ends(g, this.faint, x, y, inner, h);
        break;
      case "slot-ro":
        g.fillStyle = this.gray;
        band(h / 2 - 1, 2);
        ends(g, this.faint, x, y, inner, h);
        break;
      case "dma":
        g.save();
        g.translate(0, y + h / 2 - 6);
        g.fillStyle = this.#pattern(g, "chain", this.faint, 0.8);
        g.fillRect(x, 0, w, 12);
        g.restore();
        ends(g, this.faint, x, y, inner, h);
        break;
      case "locked":
        g.fillStyle = this.#pattern(g, "cross", this.text, 0.6);
        g.fillRect(x, y, w, h);
        frame(g, this.text, x, y, inner, h);
        break;
      case "client":
        g.fillStyle = this.#pattern(g, "bars", this.faint, 0.5);
        g.fillRect(x, y, w, h);
        frame(g, this.faint, x, y, inner, h);
        break;
      case "lost":
        g.fillStyle = this.#pattern(g, "zigzag", this.bad, 0.9);
        g.fillRect(x, y, w, h);
        frame(g, this.bad, x, y, inner, h);
        break;
      case "difference":
        frame(g, this.strong, x, y, inner, h);
        frame(g, this.strong, x + 1, y + 1, inner - 2, h - 2);
        break;
      case "heat": {
        const height = strength <= 0 ? 0 : Math.max(2, Math.round(strength * h));
        g.fillStyle = this.isDark ? `oklch(${0.5 + 0.3 * strength} 0.13 50)` : `oklch(${0.8 - 0.3 * strength} 0.14 40)`;
        g.fillRect(x, y + h - height, w, height);
        break;
      }
      default:
        g.fillStyle = this.#pattern(g, "bars", this.text, 0.75);
        g.fillRect(x, y, w, h);
    }
  }

  #pattern(g, kind, colour, alpha) {
    const key = `${kind} ${colour}`;
    let pattern = this.#patterns.get(key);
    if (pattern === undefined) {
      pattern = g.createPattern(tile(kind, colour, alpha), "repeat");
      this.#patterns.set(key, pattern);
    }
    return pattern;
  }
}

function tile(kind, colour, alpha) {
  const size = { stripes: 8, dots: 6, cross: 8, bars: 4, chain: 12, zigzag: 8 }[kind];
  const canvas = new OffscreenCanvas(size, size);
  const g = canvas.getContext("2d");
  g.strokeStyle = g.fillStyle = colour;
  g.globalAlpha = alpha;
  g.lineWidth = 2;
  g.beginPath();
  if (kind === "stripes" || kind === "cross") {
    for (const shift of [-8, 0, 8]) {
      g.moveTo(shift - 1, size + 1);
      g.lineTo(shift + size + 1, -1);
      if (kind === "cross") {
        g.moveTo(shift - 1, -1);
        g.lineTo(shift + size + 1, size + 1);
      }
    }
    g.lineWidth = kind === "cross" ? 1 : 2.4;
    g.stroke();
  } else if (kind === "zigzag") {
    for (const top of [-2, 2, 6, 10]) {
      g.moveTo(-1, top - 1);
      g.lineTo(4, top + 4);
      g.lineTo(9, top - 1);
    }
    g.lineWidth = 1;
    g.stroke();
  } else if (kind === "dots") {
    g.fillRect(1, 1, 1.6, 1.6);
    g.fillRect(4, 4, 1.6, 1.6);
  } else if (kind === "bars") {
    g.fillRect(0, 0, 1.6, size);
  } else {
    g.ellipse(6, 6, 4, 2.6, 0, 0, 2 * Math.PI);
    g.lineWidth = 1.5;
    g.stroke();
  }
  return canvas;
}

function frame(g, colour, x, y, w, h, dash = []) {
  g.strokeStyle = colour;
  g.lineWidth = 1;
  g.setLineDash(dash);
  g.strokeRect(x + 0.5, y + 0.5, Math.max(0, w - 1), h - 1);
  g.setLineDash([]);
}

function ends(g, colour, x, y, w, h) {
  g.fillStyle = colour;
  g.fillRect(x, y + h / 2 - 7, 1.5, 14);
  g.fillRect(x + w - 1.5, y + h / 2 - 7, 1.5, 14);
}
