/**
 * Who may look: whoever knows the token, from a page of the inspector itself.
 *
 * A page of somebody else's that is open in the same browser can make requests too, and by a name that resolves to
 * this host (DNS rebinding) it could even read what comes back. So the name a request was made under has to be one of
 * ours, and if it was made by a page, that page has to be one of ours.
 *
 * @module
 */

/** Names of this host as seen from itself. */
const LOOPBACK: readonly string[] = ["localhost", "127.0.0.1", "[::1]"];

/** An IPv4 address, or an IPv6 address in brackets. */
const ADDRESS = /^(\d{1,3}(\.\d{1,3}){3}|\[[0-9a-f:.]+\])$/;

/** A refusal. */
export interface Refusal {
  /** The status to answer with. */
  readonly status: 403 | 404 | 405;
  /** Why. */
  readonly reason: string;
}

/** Checks requests to one server. */
export class Admission {
  /** The first part of every path: 128 random bits. */
  readonly token: string;
  readonly #names: readonly string[];
  readonly #isEverywhere: boolean;

  /** `hostname` is what the server listens on. */
  constructor(hostname: string) {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    this.token = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
    const name = hostname.toLowerCase();
    this.#isEverywhere = name === "0.0.0.0" || name === "::" || name === "[::]";
    this.#names = [...LOOPBACK, name.includes(":") && !name.startsWith("[") ? `[${name}]` : name];
  }

  /**
   * The path below the token, or why there is none. The port of the name may be any: it is that of a tunnel, often.
   */
  check({ method, url, headers }: Pick<Request, "method" | "url" | "headers">): string | Refusal {
    const host = headers.get("host")?.toLowerCase() ?? "";
    const name = host.replace(/:\d*$/, "");
    // On all addresses of the host any of them will do; a name never does, since it may lead anywhere.
    if (!this.#names.includes(name) && !(this.#isEverywhere && ADDRESS.test(name))) {
      return { status: 403, reason: "The Host header names another host" };
    }
    const [, token = "", ...path] = URL.parse(url)?.pathname.split("/") ?? [];
    if (!isSame(token, this.token)) return { status: 404, reason: "Nothing is here without the token" };
    if (method !== "GET") return { status: 405, reason: "The inspector is read-only" };
    const origin = headers.get("origin");
    if (origin !== null && origin.toLowerCase() !== `http://${host}`) {
      return { status: 403, reason: "The Origin header names another page" };
    }
    // Somebody may follow a link to the page, but nobody else's page may ask for anything.
    const site = headers.get("sec-fetch-site") ?? "none";
    const isVisit = headers.get("sec-fetch-mode") === "navigate" && headers.get("sec-fetch-dest") === "document";
    if (site !== "none" && site !== "same-origin" && !isVisit) {
      return { status: 403, reason: "The request was made by another page" };
    }
    return path.join("/");
  }
}

/** Whether two strings are equal, in a time that does not tell how much of them is. */
function isSame(a: string, b: string): boolean {
  let difference = a.length ^ b.length;
  for (let i = 0; i < b.length; i++) difference |= a.charCodeAt(i) ^ b.charCodeAt(i);
  return difference === 0;
}
