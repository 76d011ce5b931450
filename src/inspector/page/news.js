// When there is something new to see.

/** Calls `news` after requests, while the page can be seen, and `connected` as the inspector comes and goes. */
export function setUpNews({ connected, news }) {
  const events = new EventSource("events");
  events.onopen = () => connected(true);
  events.onerror = () => connected(false);
  events.onmessage = () => {
    if (!document.hidden) news();
  };
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) news();
  });
}
