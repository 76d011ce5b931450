// The search: addresses, regions and files.

import { ask, Asker, element, hex } from "./api.js";

const at = (id) => document.getElementById(id);

/** Has the search work. `moment` is the point of the past that is looked at, and `goTo` goes to what was found. */
export function setUpSearch(moment, goTo) {
  let found = [];
  let chosen = 0;
  const searches = new Asker((answer) => {
    found = answer.found;
    chosen = 0;
    show();
  }, () => {});

  function show() {
    const items = found.map(({ name, what, start, end }, i) => {
      const item = element("li");
      item.setAttribute("aria-selected", String(i === chosen));
      item.append(element("span", name), element("span", `${what} ${hex(start)}-${hex(end)}`, "address faint"));
      item.onpointerdown = (event) => {
        event.preventDefault();
        pick(i);
      };
      return item;
    });
    if (items.length === 0) items.push(element("li", "Nothing is called that, and no such address", "faint"));
    at("found").replaceChildren(...items);
    at("found").hidden = at("query").value.trim() === "";
  }

  function pick(i) {
    const one = found[i];
    if (one === undefined) return;
    at("found").hidden = true;
    at("strips").focus();
    goTo(one.start, one.end);
  }

  at("query").addEventListener("input", () => searches.ask("find", { at: moment(), q: at("query").value }));
  at("query").addEventListener("blur", () => at("found").hidden = true);
  at("query").addEventListener("keydown", (event) => {
    if (event.key === "Escape") at("strips").focus();
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      chosen = Math.max(0, Math.min(found.length - 1, chosen + (event.key === "ArrowDown" ? 1 : -1)));
      show();
    } else return;
    event.preventDefault();
  });
  at("search").addEventListener("submit", async (event) => {
    event.preventDefault();
    // Whoever is quicker than the list gets what the list would begin with.
    ({ found } = await ask("find", { at: moment(), q: at("query").value }));
    pick(Math.min(chosen, found.length - 1));
  });
}
