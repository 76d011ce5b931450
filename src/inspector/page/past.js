// The requests of the past: a slider and a list, of which only what is on the screen is asked for and made.

import { ask, element } from "./api.js";

const ROW = 22;
const CHUNK = 100;

/** The list of requests. */
export class Past {
  first = 1;
  last = 0;
  /** The point that is looked at, `null` for the present. */
  at = null;
  /** The point it is compared with, `null` for none. */
  pinned = null;
  #rows = new Map();
  #isAsking = false;
  #follows = true;

  /** `choose` is told which request is clicked on, `loaded` when more is known of some. */
  constructor({ list, page, slider, kept }, choose, loaded) {
    this.list = list;
    this.page = page;
    this.slider = slider;
    this.kept = kept;
    this.choose = choose;
    this.loaded = loaded;
    list.addEventListener("scroll", () => {
      this.#follows = list.scrollTop + list.clientHeight >= list.scrollHeight - ROW;
      this.draw();
    });
  }

  /** Takes over what the inspector says about its history. */
  update({ first, last, bytes, limit, watching, gone }) {
    this.first = first;
    this.last = last;
    for (const number of this.#rows.keys()) if (number < first) this.#rows.delete(number);
    const share = `${(bytes / 2 ** 20).toFixed(1)} of ${(limit / 2 ** 20).toFixed(0)} MiB`;
    const count = Math.max(0, last - first + 1);
    this.kept.textContent = `${count.toLocaleString("en-US")} kept, ${share}${gone || watching ? "" : ", paused"}`;
    this.slider.min = String(first);
    this.slider.max = String(Math.max(first, last));
    this.slider.disabled = last < first;
    this.slider.value = String(this.at ?? last);
    this.draw();
  }

  /** The row of a request, if it is here already. */
  row(number) {
    return this.#rows.get(number) ?? null;
  }

  /** Draws the rows that are on the screen. */
  draw() {
    const { list, page } = this;
    const count = Math.max(0, this.last - this.first + 1);
    page.style.height = `${count * ROW}px`;
    list.setAttribute("aria-rowcount", String(count));
    if (this.#follows && this.at === null) list.scrollTop = list.scrollHeight;
    const top = Math.floor(list.scrollTop / ROW);
    const shown = Math.ceil(list.clientHeight / ROW) + 1;
    const rows = [];
    for (let i = top; i < Math.min(count, top + shown); i++) {
      const number = this.first + i;
      const row = this.#rows.get(number);
      if (row === undefined) this.#want(number);
      rows.push(this.#made(number, row, i * ROW));
    }
    page.replaceChildren(...rows);
  }

  /** Scrolls so that the point that is looked at can be seen. */
  reveal() {
    if (this.at === null) return;
    const { list } = this;
    const top = (this.at - this.first) * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + 3 * ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + 3 * ROW - list.clientHeight;
  }

  /** Asks for the rows around one, some at a time. */
  async #want(number) {
    if (this.#isAsking) return;
    this.#isAsking = true;
    try {
      const from = number - number % CHUNK;
      const { rows, milliseconds } = await ask("requests", { from, count: CHUNK });
      for (const row of rows) this.#rows.set(row.number, row);
      // The thread that answers has other things to do as well.
      await new Promise((resolve) => setTimeout(resolve, 19 * milliseconds));
      this.loaded();
    } catch {
      // Not connected, which is said elsewhere; who draws again asks again.
      return;
    } finally {
      this.#isAsking = false;
    }
    this.draw();
  }

  #made(number, row, top) {
    const made = element("div");
    made.style.top = `${top}px`;
    made.style.height = `${ROW}px`;
    made.setAttribute("role", "row");
    made.dataset.number = String(number);
    const isAt = number === (this.at ?? this.last);
    made.setAttribute("aria-selected", String(isAt));
    if (number === this.pinned) made.classList.add("pinned");
    made.onclick = (event) => this.choose(number, event.shiftKey);
    for (const [text, name] of cells(number, row)) {
      const cell = element("span", text, name);
      cell.setAttribute("role", "gridcell");
      cell.title = text;
      made.append(cell);
    }
    if (row?.error) {
      made.classList.add("failed");
      made.title = row.error.join("\n");
    }
    if (row?.name === null) made.classList.add("missed");
    return made;
  }
}

function cells(number, row) {
  if (row === undefined) return [[String(number), ""], ["…", ""]];
  const time = new Date(row.time);
  const clock = `${time.toLocaleTimeString("en-GB")}.${String(time.getMilliseconds()).padStart(3, "0")}`;
  if (row.name === null) {
    return [[String(number), ""], [clock, ""], ["looking from here on", ""], [
      "requests before this were not seen",
      "",
    ]];
  }
  const more = row.changes > row.changed.length ? ` and ${row.changes - row.changed.length} more` : "";
  const changed = row.changed.length === 0 ? "nothing the guest sees" : `${row.changed.join(", ")}${more}`;
  const where = row.parts.length > 0
    ? row.parts.join(", ").replaceAll(": region", "")
    : [row.region, row.range].filter((text) => text !== null).join("  ");
  const name = row.parts.length === 0 ? row.name : `${row.name} of ${row.parts.length}`;
  return [
    [String(number), ""],
    [clock, ""],
    [row.error ? `✗ ${name}` : name, ""],
    [where, ""],
    [row.error ? row.error.join(" ← ") : changed, ""],
    [String(row.steps), "number"],
    [String(row.systemCalls), "number"],
    [String(row.slotChanges), "number"],
    [row.microseconds.toFixed(row.microseconds < 100 ? 1 : 0), "number"],
  ];
}
