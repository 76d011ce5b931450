// What is said beside the strips: what is at the cursor, what differs, figures, keys and signs.

import { element, hex, size } from "./api.js";
import { MEANINGS } from "./looks.js";

const KEYS = [
  ["← →", "to the next edge", "↑ ↓", "to the next strip"],
  ["+ −", "zoom at the cursor", "⇧ ← →", "move the window"],
  ["⏎", "zoom to the piece", "0", "all of guest memory"],
  ["f", "folded, or to scale", "/", "search"],
  ["[ ]", "one request back, on", "space", "play the past"],
  ["l", "back to the present", "c", "compare with this point"],
  ["n p", "next, previous difference", "x", "swap the two compared"],
  ["h", "heat", "t", "table"],
];

function list(facts) {
  const made = element("dl");
  for (const [about, text] of facts) made.append(element("dt", about), element("dd", text));
  return made;
}

/** Says which moment is looked at. */
export function showMoment({ isConnected, at, pinned, isGone, isPlaying, trouble }) {
  const find = (id) => document.getElementById(id);
  const moment = find("moment");
  const [kind, text] = !isConnected
    ? ["bad", "not connected"]
    : at !== null
    ? ["past", `the past: after request ${at}`]
    : isGone
    ? ["bad", "the guest's memory is gone: this was the last of it"]
    : ["live", "live"];
  moment.className = `chip ${kind}`;
  moment.textContent = text;
  moment.title = trouble;
  find("other").hidden = pinned === null;
  find("other").textContent = `compared with request ${pinned}`;
  find("live").setAttribute("aria-pressed", String(at === null));
  find("compare").setAttribute("aria-pressed", String(pinned !== null));
  for (const link of find("save").querySelectorAll("a")) {
    link.href = `${link.dataset.name}${at === null ? "" : `?at=${at}`}`;
  }
  find("play").textContent = isPlaying ? "⏸" : "▶";
}

/** Says what the strips show, as a table. */
export function showTable(section, strips, scale) {
  const rows = [];
  for (const { label, pieces } of strips.lanes) {
    for (const [start, end, look, text] of pieces) {
      if (scale.x(end) < scale.left || scale.x(start) > scale.right || rows.length >= MOST_ROWS) continue;
      const row = element("tr");
      const cells = [label, `${hex(start)}-${hex(end)}`, size(end - start), MEANINGS[look] ?? look, text];
      for (const cell of cells) row.append(element("td", cell));
      rows.push(row);
    }
  }
  section.querySelector("tbody").replaceChildren(...rows);
}

const MOST_ROWS = 2000;

/** Says what a request did. */
export function showRequest(section, row) {
  section.hidden = row === null || row.name === null;
  if (section.hidden) return;
  section.replaceChildren(element("h2", `Request ${row.number}`), element("div", row.name, "name"));
  if (row.error !== null) {
    const [first, ...causes] = row.error;
    section.append(element("p", `✗ ${first}`, "bad"));
    for (const cause of causes) section.append(element("p", `because of ${cause}`, "bad"));
  }
  section.append(list([
    ...(row.region === null ? [] : [["region", row.region]]),
    ...(row.range === null ? [] : [["range", row.range]]),
    [
      "changed",
      row.changes === 0
        ? "nothing the guest sees"
        : `${row.changed.join(", ")}${row.changes > row.changed.length ? " …" : ""}`,
    ],
    [
      "took",
      `${
        row.microseconds.toFixed(1)
      } µs: ${row.steps} steps, ${row.systemCalls} system calls, ${row.slotChanges} slot changes`,
    ],
  ]));
  const parts = element("ul");
  for (const part of row.parts) parts.append(element("li", part));
  if (row.parts.length > 0) section.append(parts);
}

/** Says what is at an address. */
export function showAbout(section, about, piece) {
  const address = element("p", about.gpa, "address");
  section.replaceChildren(element("h2", "At the cursor"), address);
  if (piece !== null) {
    const [start, end] = piece;
    address.append(element("span", `  in ${hex(start)}-${hex(end)}, ${size(end - start)}`, "faint"));
  }
  if (about.regions.length === 0) section.append(element("p", "No region is here.", "faint"));
  for (const { name, range, standing, seen, facts } of about.regions) {
    const region = element("div", "", `region ${seen ? "seen" : "not"}`);
    region.append(element("div", name, "name"), element("div", standing), list([["range", range], ...facts]));
    section.append(region);
  }
  if (about.facts.length > 0) section.append(list(about.facts));
}

/** Says what differs, and lets one go there. */
export function showDifferences(section, comparison, current, go) {
  section.hidden = comparison === null;
  if (comparison === null) return;
  const { count, seen, notes } = comparison;
  const what = count === 0
    ? "The guest sees no difference."
    : count === 1
    ? "1 range differs."
    : `${count} ranges differ.`;
  section.replaceChildren(element("h2", "Differences"), element("p", what));
  const items = element("ol");
  seen.forEach(({ range, kind, was, is }, i) => {
    const item = element("li", "", i === current ? "go current" : "go");
    item.append(element("span", SIGNS[kind], "sign"), element("span", range, "address"));
    item.append(element("div", `was ${was}`, "faint"), element("div", `is ${is}`));
    item.onclick = () => go(i);
    items.append(item);
  });
  section.append(items);
  if (notes.length > 0) {
    const others = element("ul");
    for (const note of notes) others.append(element("li", note));
    section.append(others);
  }
  section.querySelector(".current")?.scrollIntoView({ block: "nearest" });
}

const SIGNS = { "appeared": "+", "vanished": "−", "other memory": "≠", "access": "w" };

/** Figures, and where devices are. */
export function showFigures(section, { regions, hostMappings, partitions, dmaTargets, devices, outOfStep }, go) {
  section.replaceChildren(element("h2", "Figures"));
  const capacity = (of) => of === null ? "" : ` of ${of.toLocaleString("en-US")}`;
  section.append(list([
    ["regions", regions.toLocaleString("en-US")],
    ["host mappings", hostMappings.toLocaleString("en-US")],
    ...partitions.map((
      { name, ranges, capacity: of },
    ) => [name, `${ranges.toLocaleString("en-US")}${capacity(of)} ranges`]),
    ...dmaTargets.map(({ name, ranges }) => [name, `${ranges.toLocaleString("en-US")} mappings`]),
    ...(outOfStep === 0 ? [] : [["out of step", `${outOfStep} ranges`]]),
  ]));
  if (devices.length === 0) return;
  section.append(element("h2", "Devices"));
  const items = element("ul");
  for (const { name, start, end } of devices) {
    const item = element("li", "", start === null ? "" : "go");
    item.append(element("span", name, "name"));
    const where = start === null ? "not in the guest" : `${hex(start)}-${hex(end)}`;
    item.append(element("div", `${where}${start === null ? "" : `, ${size(end - start)}`}`, "address"));
    if (start !== null) item.onclick = () => go(start, end);
    items.append(item);
  }
  section.append(items);
}

/** Keys, and what looks how. */
export function showKeys(section, looks) {
  section.replaceChildren(element("h2", "Keys"));
  const keys = element("dl");
  for (const [a, does, b, also] of KEYS) {
    for (const [key, text] of [[a, does], [b, also]]) {
      const term = element("dt");
      for (const one of key.split(" ")) term.append(element("kbd", one), " ");
      keys.append(term, element("dd", text));
    }
  }
  section.append(keys, element("h2", "Mouse"));
  section.append(
    element(
      "p",
      "Wheel zooms, dragging moves, a double click zooms to a piece, ⇧ and a click on a request compares with it.",
    ),
  );
  section.append(element("h2", "Signs"));
  for (const [look, meaning] of Object.entries(MEANINGS)) {
    const line = element("p");
    const canvas = element("canvas");
    const ratio = devicePixelRatio || 1;
    canvas.width = 44 * ratio;
    canvas.height = 18 * ratio;
    canvas.style.width = "44px";
    canvas.style.height = "18px";
    const g = canvas.getContext("2d");
    g.scale(ratio, ratio);
    looks.draw(g, look, 255, 0, 0, 44, 18, 0.7);
    line.append(canvas, element("span", meaning));
    section.append(line);
  }
}
