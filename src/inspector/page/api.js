// What is asked of the inspector, one question of a kind at a time.

/** Asks, below the token that the page itself was found under. */
export async function ask(name, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined);
  const response = await fetch(`${name}?${new URLSearchParams(given)}`);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error ?? response.statusText);
  return answer;
}

/**
 * Asks again and again with whatever is newest: while one question is under way, later ones replace each other. The
 * inspector answers in the thread of the machine that is looked at, so it is asked to work a twentieth of the time at
 * most.
 */
export class Asker {
  #isBusy = false;
  #next = null;

  constructor(answered, failed) {
    this.answered = answered;
    this.failed = failed;
  }

  ask(name, query) {
    this.#next = { name, query };
    if (!this.#isBusy) this.#run();
  }

  async #run() {
    this.#isBusy = true;
    while (this.#next !== null) {
      const { name, query } = this.#next;
      this.#next = null;
      try {
        const answer = await ask(name, query);
        this.answered(answer, query);
        const pause = Math.min(1000, 19 * (answer.milliseconds ?? 0));
        if (pause > 16) await new Promise((resolve) => setTimeout(resolve, pause));
      } catch (error) {
        this.failed(error);
      }
    }
    this.#isBusy = false;
  }
}

/** A number of bytes, in the largest unit that is short. */
export function size(bytes) {
  let unit = 0;
  while (bytes >= 1024 && unit < 6) {
    bytes /= 1024;
    unit++;
  }
  const digits = Number.isInteger(bytes) ? 0 : bytes < 10 ? 1 : 0;
  return `${digits === 0 && !Number.isInteger(bytes) ? "~" : ""}${bytes.toFixed(digits)}${
    ["", "K", "M", "G", "T", "P", "E"][unit]
  }`;
}

/** An address. */
export function hex(address) {
  return `0x${Math.floor(address).toString(16)}`;
}

/** Makes an element. What it says is text, never markup. */
export function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  if (text !== "") made.textContent = text;
  if (className !== "") made.className = className;
  return made;
}
