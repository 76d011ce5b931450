// What the pointer does: zoom, move, point, and say what is below it.

import { Asker, element, hex, size } from "./api.js";
import { MEANINGS } from "./looks.js";

const at = (id) => document.getElementById(id);
/** How long the pointer has to rest before more is asked for, in milliseconds. */
const REST = 120;

/** Has the pointer work over `strips`. `moment` is the point of the past that is looked at. */
export function setUpPointer(strips, scale, moment, { moved, zoom, pan, point, zoomToPiece, redraw }) {
  let drag = null;
  let rest;
  const abouts = new Asker((about, { gpa }) => {
    if (!at("tip").hidden && Math.floor(strips.hover?.gpa ?? -1) === gpa) tellMore(about);
  }, () => {});

  function placeOf(event) {
    const { left, top } = at("strips").getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  }

  at("strips").addEventListener("wheel", (event) => {
    event.preventDefault();
    tip(null);
    if (event.altKey) at("strips").scrollTop += event.deltaY;
    else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      pan((event.deltaX || event.deltaY) / 800);
    } else zoom(Math.exp(event.deltaY / 400), placeOf(event)[0]);
  }, { passive: false });

  at("strips").addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    drag = { x: event.clientX, y: event.clientY, from: scale.from, to: scale.to, moved: false };
    at("strips").setPointerCapture(event.pointerId);
  });

  at("strips").addEventListener("pointermove", (event) => {
    const [x, y] = placeOf(event);
    if (drag !== null) {
      drag.moved ||= Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > 3;
      if (!drag.moved) return;
      at("strips").classList.add("dragging");
      const shift = (event.clientX - drag.x) / (scale.right - scale.left) * (drag.to - drag.from);
      scale.show(drag.from - shift, drag.to - shift);
      tip(null);
      return moved();
    }
    if (x < scale.left || x > scale.right) return tip(null);
    strips.hover = { gpa: scale.address(x) };
    const lane = strips.laneAt(y);
    tip(event, lane, lane === null ? null : strips.pieceAt(lane, strips.hover.gpa));
    redraw();
  });

  at("strips").addEventListener("pointerup", (event) => {
    const wasDrag = drag?.moved ?? false;
    drag = null;
    at("strips").classList.remove("dragging");
    const [x, y] = placeOf(event);
    if (wasDrag || x < scale.left || x > scale.right) return;
    const lane = strips.laneAt(y) ?? strips.lanes.find(({ key }) => key === strips.cursor?.lane);
    if (lane !== undefined) point(lane.key, Math.floor(scale.address(x)));
  });

  at("strips").addEventListener("dblclick", () => zoomToPiece());
  at("strips").addEventListener("pointerleave", () => {
    strips.hover = null;
    tip(null);
    redraw();
  });
  at("strips").addEventListener("scroll", redraw);

  /** Says what is below the pointer: what is known at once, and once it rests what there is to know. */
  function tip(event, lane = null, piece = null) {
    clearTimeout(rest);
    const made = at("tip");
    made.hidden = event === null || lane === null;
    if (made.hidden) return;
    const what = piece === null ? "nothing" : MEANINGS[piece[2]] ?? piece[2];
    made.replaceChildren(element("div", hex(strips.hover.gpa), "address"));
    if (piece !== null) {
      if (piece[3] !== "" && piece[2] !== "heat") made.append(element("strong", piece[3]));
      made.append(element("div", `${hex(piece[0])}-${hex(piece[1])}, ${size(piece[1] - piece[0])}`, "address"));
    }
    const share = piece?.[2] === "heat" ? `${Math.round(100 * Number(piece[3]))} % ` : "";
    made.append(element("div", `${lane.label}: ${share}${what}`, "faint"));
    put(event.clientX, event.clientY);
    const gpa = Math.floor(strips.hover.gpa);
    rest = setTimeout(() => abouts.ask("about", { at: moment(), gpa }), REST);
    made.dataset.x = String(event.clientX);
    made.dataset.y = String(event.clientY);
  }

  function tellMore({ regions }) {
    const made = at("tip");
    for (const { name, standing, facts } of regions) {
      const known = new Map(facts);
      const file = [known.get("backing"), known.get("file offset")].filter((fact) => fact !== undefined).join(" +");
      const line = element("div", "", "more");
      line.append(element("strong", name), element("span", ` ${standing}`), element("div", file, "address"));
      made.append(line);
    }
    put(Number(made.dataset.x), Number(made.dataset.y));
  }

  function put(x, y) {
    const { style } = at("tip");
    const { width, height } = at("tip").getBoundingClientRect();
    style.left = `${Math.min(x + 14, innerWidth - width - 8)}px`;
    style.top = `${y + 18 + height > innerHeight ? y - height - 10 : y + 18}px`;
  }

  at("overview").addEventListener("pointerdown", (event) => {
    const { left, width } = at("overview").getBoundingClientRect();
    const place = (event.clientX - left) / width * scale.total;
    const length = scale.to - scale.from;
    scale.show(place - length / 2, place + length / 2);
    moved();
  });
}
