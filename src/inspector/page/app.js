// The page: what is looked at, and what keys and pointer do about it.

import { ask, Asker } from "./api.js";
import { showAbout, showDifferences, showFigures, showKeys, showMoment, showRequest, showTable } from "./details.js";
import { Strips } from "./draw.js";
import { Looks, MEANINGS } from "./looks.js";
import { setUpKeys } from "./keys.js";
import { setUpNews } from "./news.js";
import { Past } from "./past.js";
import { readPlace, writePlace } from "./place.js";
import { setUpPointer } from "./pointer.js";
import { Scale } from "./scale.js";
import { setUpSearch } from "./search.js";

const at = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
const scale = new Scale();
const strips = new Strips(at("canvas"), at("strips"), at("spacer"), scale);
const past = new Past(
  { list: at("list"), page: at("page"), slider: at("slider"), kept: at("kept") },
  choose,
  showRequestNow,
);
let looks = new Looks(dark.matches);
let view = null;
let comparison = null;
let difference = -1;
let isConnected = false;
let isHot = false;
let playing = null;
let isFrameDue = false;
let lastSummary = "";
/** Addresses that are to be on the screen as soon as it is known where they are. */
let target = null;

// What is asked for

const views = new Asker(onView, onFailure);
const abouts = new Asker(onAbout, () => {});
const comparisons = new Asker(onComparison, onFailure);

/** Asks for what is on the screen, or for addresses wherever they are. */
function look() {
  const isAll = scale.from <= 0 && scale.to >= scale.total;
  const isThere = target === null && !isAll;
  views.ask("view", {
    at: past.at,
    with: past.pinned,
    axis: scale.kind,
    layout: target === null ? scale.layout : -1,
    from: isThere ? scale.from : 0,
    to: isThere ? scale.to : 0,
    start: target?.start ?? scale.address(scale.left),
    end: target?.end ?? scale.address(scale.right),
    columns: Math.round((scale.right - scale.left) * (devicePixelRatio || 1)),
    heat: isHot ? 1 : null,
  });
}

/** Looks at addresses, once it is known where they are, with as much room on both sides as a part of them. */
function jump(start, end, room = 0) {
  target = { start, end, room };
  look();
}

function onView(answer, query) {
  isConnected = true;
  // Something else is wanted by now, and has been asked for.
  if (query.axis !== scale.kind || (target !== null && (query.start !== target.start || query.end !== target.end))) {
    return;
  }
  view = answer;
  // The question was where something is, or the axis is another one by now.
  if (target !== null || answer.layout !== query.layout || (query.from === 0 && query.to === 0)) {
    scale.total = answer.total;
    const room = (target?.room ?? 0) * (answer.to - answer.from);
    scale.show(answer.from - room, answer.to + room);
  }
  target = null;
  scale.update(answer);
  strips.update(answer.lanes);
  past.update(answer);
  const summary = JSON.stringify(answer.summary);
  if (summary !== lastSummary) showFigures(at("figures"), answer.summary, goTo);
  lastSummary = summary;
  if (strips.cursor === null && answer.lanes.length > 0) {
    strips.cursor = { lane: answer.lanes[0].key, gpa: 0 };
    examine();
  }
  describe();
  redraw();
  if (!at("rows").hidden) showTable(at("rows"), strips, scale);
  const isAll = scale.from <= 0 && scale.to >= scale.total;
  const [start, end] = isAll ? [null, null] : [scale.address(scale.left), scale.address(scale.right)];
  writePlace({ at: past.at, pinned: past.pinned, isStraight: scale.kind === "straight", start, end });
  // For whoever looks from outside: what is shown now.
  document.body.dataset.at = String(query.at ?? answer.last);
}

function onFailure(error) {
  if (error instanceof TypeError) isConnected = false;
  else if (past.at !== null || past.pinned !== null) {
    // What was looked at has been forgotten meanwhile.
    past.pinned = null;
    goBack(null);
  }
  describe(error.message);
}

/** Asks what is at the cursor. */
function examine() {
  if (strips.cursor === null) return;
  const gpa = Math.floor(strips.cursor.gpa);
  abouts.ask("about", { at: past.at, gpa });
}

function onAbout(about) {
  const { cursor } = strips;
  const lane = strips.lanes.find(({ key }) => key === cursor?.lane);
  const piece = cursor === null ? null : strips.pieceAt(lane, cursor.gpa);
  showAbout(at("about"), about, piece);
  const inLane = piece === null ? "nothing" : `${MEANINGS[piece[2]] ?? piece[2]} ${piece[3]}`;
  at("spoken").textContent = `${lane?.label ?? ""}: ${inLane}. ${about.summary}`;
}

function onComparison(answer) {
  comparison = answer;
  difference = Math.min(difference, answer.seen.length - 1);
  showDifferences(at("differences"), comparison, difference, goToDifference);
}

/** Everything anew, for another point of the past. */
function refresh() {
  look();
  examine();
  if (past.pinned !== null) comparisons.ask("compare", { at: past.at, with: past.pinned });
  showRequestNow();
}

function showRequestNow() {
  showRequest(at("request"), past.at === null ? null : past.row(past.at));
}

// What is shown

function redraw() {
  if (isFrameDue) return;
  isFrameDue = true;
  requestAnimationFrame(() => {
    isFrameDue = false;
    strips.draw(looks);
    const brush = at("brush");
    brush.style.left = `${100 * scale.from / scale.total}%`;
    brush.style.width = `${100 * (scale.to - scale.from) / scale.total}%`;
    document.body.dataset.bytes = String(Math.round(scale.address(scale.right) - scale.address(scale.left)));
  });
}

function describe(trouble = "") {
  const { at, pinned } = past;
  showMoment({ isConnected, at, pinned, isGone: view?.gone ?? false, isPlaying: playing !== null, trouble });
}

// Where one looks

/** Shows a range, with some room around it; of less than a page, its page. */
function goTo(start, end) {
  strips.cursor = { lane: strips.cursor?.lane ?? "seen", gpa: start };
  if (end - start < 4096) start -= start % 4096;
  jump(start, Math.max(end, start + 4096), 1 / 4);
  examine();
}

function fit() {
  if (scale.kind === "straight" && view !== null) return jump(0, view.length);
  scale.show(0, scale.total);
  moved();
}

function moved() {
  target = null;
  look();
  redraw();
}

function zoom(factor, x = scale.x(strips.cursor?.gpa ?? 0)) {
  if (x < scale.left || x > scale.right) x = (scale.left + scale.right) / 2;
  scale.zoom(factor, x);
  moved();
}

function pan(part) {
  const length = scale.to - scale.from;
  scale.show(scale.from + part * length, scale.to + part * length);
  moved();
}

/** Puts the cursor somewhere, and moves the window along if it would leave it. */
function point(lane, gpa) {
  strips.cursor = { lane, gpa };
  const x = scale.x(gpa);
  if (x < scale.left || x > scale.right) {
    const length = scale.to - scale.from;
    const place = scale.place(gpa);
    scale.show(place - length / 2, place + length / 2);
    moved();
  }
  strips.reveal(lane);
  examine();
  redraw();
}

function step(direction) {
  const edge = strips.nextEdge(direction);
  if (edge === null) pan(direction / 4);
  else point(edge.lane, edge.gpa);
}

function stepLane(direction) {
  const { lanes, cursor } = strips;
  const i = lanes.findIndex(({ key }) => key === cursor?.lane);
  const lane = lanes[Math.max(0, Math.min(lanes.length - 1, i + direction))];
  if (lane !== undefined) point(lane.key, cursor?.gpa ?? 0);
}

// When one looks

function choose(number, isOther) {
  if (!isOther) return goBack(number);
  past.pinned = past.pinned === number ? null : number;
  compared();
}

function goBack(number) {
  past.at = number === null ? null : Math.max(past.first, Math.min(past.last, number));
  at("slider").value = String(past.at ?? past.last);
  past.reveal();
  past.draw();
  describe();
  refresh();
}

function stepPast(direction) {
  if (past.last < past.first) return;
  goBack((past.at ?? past.last) + direction);
}

function play() {
  if (playing !== null) {
    clearInterval(playing);
    playing = null;
    return describe();
  }
  if ((past.at ?? past.last) >= past.last) goBack(past.first);
  playing = setInterval(() => {
    if (past.at === null || past.at >= past.last) return play();
    stepPast(1);
  }, 250);
  describe();
}

function compared() {
  if (past.pinned === null) comparison = null;
  difference = -1;
  showDifferences(at("differences"), comparison, difference, goToDifference);
  past.draw();
  describe();
  refresh();
}

function compareFromHere() {
  past.pinned = past.pinned === null && past.last >= past.first ? past.at ?? past.last : null;
  compared();
}

function swap() {
  if (past.pinned === null) return;
  const here = past.at ?? past.last;
  const other = past.pinned;
  past.pinned = here;
  goBack(other);
}

function goToDifference(i) {
  const count = comparison?.seen.length ?? 0;
  if (count === 0) return;
  difference = (i + count) % count;
  const { start, end } = comparison.seen[difference];
  showDifferences(at("differences"), comparison, difference, goToDifference);
  goTo(start, end);
}

function zoomToPiece() {
  const lane = strips.lanes.find(({ key }) => key === strips.cursor?.lane);
  const piece = strips.cursor === null ? null : strips.pieceAt(lane, strips.cursor.gpa);
  if (piece !== null) goTo(piece[0], piece[1]);
}

setUpSearch(() => past.at, goTo);
setUpPointer(strips, scale, () => past.at, { moved, zoom, pan, point, zoomToPiece, redraw });

// Buttons and keys

function toggle(id, isOn = at(id).getAttribute("aria-pressed") !== "true") {
  at(id).setAttribute("aria-pressed", String(isOn));
  return isOn;
}

const ACTIONS = {
  in: () => zoom(1 / 2),
  out: () => zoom(2),
  fit,
  folded() {
    const [start, end] = [scale.address(scale.left), scale.address(scale.right)];
    const isAll = scale.from <= 0 && scale.to >= scale.total;
    scale.kind = toggle("folded") ? "folded" : "straight";
    if (!isAll) jump(start, end);
    else jump(0, scale.kind === "folded" ? 2 ** 52 : view?.length ?? 2 ** 52);
  },
  heat() {
    isHot = toggle("heat");
    look();
  },
  table() {
    const isTable = toggle("table");
    at("rows").hidden = !isTable;
    at("strips").hidden = isTable;
    if (isTable) showTable(at("rows"), strips, scale);
    else redraw();
  },
  help() {
    at("keys").hidden = !toggle("help");
    if (!at("keys").hidden) {
      showKeys(at("keys"), looks);
      at("keys").scrollIntoView({ block: "start" });
    }
  },
  first: () => goBack(past.first),
  back: () => stepPast(-1),
  forth: () => stepPast(1),
  play,
  live: () => goBack(null),
  compare: compareFromHere,
};
at("slider").addEventListener("input", () => goBack(Number(at("slider").value)));

const KEYS = {
  "+": () => zoom(1 / 2),
  "=": () => zoom(1 / 2),
  "-": () => zoom(2),
  "_": () => zoom(2),
  "0": fit,
  "Home": fit,
  "ArrowLeft": (event) => event.shiftKey ? pan(-1 / 4) : step(-1),
  "ArrowRight": (event) => event.shiftKey ? pan(1 / 4) : step(1),
  "ArrowUp": () => stepLane(-1),
  "ArrowDown": () => stepLane(1),
  "Enter": zoomToPiece,
  "Escape": () => past.pinned !== null ? compareFromHere() : past.at !== null ? goBack(null) : fit(),
  "/": () => at("query").select(),
  "[": () => stepPast(-1),
  "]": () => stepPast(1),
  " ": play,
  "l": () => goBack(null),
  "c": compareFromHere,
  "x": swap,
  "n": () => goToDifference(difference + 1),
  "p": () => goToDifference(difference - 1),
  "f": ACTIONS.folded,
  "h": ACTIONS.heat,
  "t": ACTIONS.table,
  "?": ACTIONS.help,
};

setUpKeys(KEYS, ACTIONS);

// The rest

dark.addEventListener("change", () => {
  looks = new Looks(dark.matches);
  if (!at("keys").hidden) showKeys(at("keys"), looks);
  redraw();
});
const place = readPlace();
[past.at, past.pinned] = [place.at, place.pinned];
if (place.isStraight) scale.kind = toggle("folded", false) ? "folded" : "straight";
if (place.start !== null && place.end > place.start) target = { start: place.start, end: place.end, room: 0 };

new ResizeObserver(() => {
  scale.fitInto(at("map").clientWidth);
  redraw();
  look();
  past.draw();
}).observe(at("map"));

setUpNews({
  connected(is) {
    isConnected = is;
    if (!is) describe();
  },
  // Who looks at the past has no use for the present, but for how much there is of it.
  news: () => past.at === null ? refresh() : look(),
});

const { title } = await ask("title");
if (title !== "") at("title").textContent = document.title = title;
