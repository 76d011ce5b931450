// Keys and buttons.

/** Has keys and buttons do what they are for. */
export function setUpKeys(keys, buttons) {
  for (const [id, act] of Object.entries(buttons)) document.getElementById(id).addEventListener("click", act);
  addEventListener("keydown", (event) => {
    const { target, key } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || target.id === "query") return;
    // The slider and buttons have keys of their own.
    if (target.id === "slider" && /^(Arrow|Home|End|Page)/.test(key)) return;
    if (target.tagName === "BUTTON" && (key === " " || key === "Enter")) return;
    const act = keys[key];
    if (act === undefined) return;
    event.preventDefault();
    act(event);
  });
}
