// Where and when one looks, in the address of the page: so that it can be loaded again, or sent to somebody.

/** What the address says. */
export function readPlace() {
  const said = new URLSearchParams(location.hash.slice(1));
  const number = (name) => /^\d+(\.\d+)?$/.test(said.get(name) ?? "") ? Number(said.get(name)) : null;
  return {
    at: number("at"),
    pinned: number("with"),
    isStraight: said.get("axis") === "straight",
    start: number("start"),
    end: number("end"),
  };
}

let timer;

/** Has the address say it, in a moment. */
export function writePlace({ at, pinned, isStraight, start, end }) {
  clearTimeout(timer);
  timer = setTimeout(() => {
    const said = Object.entries({ at, with: pinned, axis: isStraight ? "straight" : null, start, end })
      .filter(([, value]) => value !== null).map(([name, value]) => [name, String(value)]);
    const hash = said.length === 0 ? location.pathname : `#${new URLSearchParams(said)}`;
    history.replaceState(null, "", hash);
  }, 300);
}
