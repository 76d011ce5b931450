/**
 * Requests with any headers, which `fetch` does not make, and what comes back.
 *
 * @module
 */

/** An answer. */
export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  readonly body: string;
}

/** Asks over a connection of its own. Headers are sent as they are, `Host` included. */
export async function send(url: string, headers: Record<string, string> = {}, method = "GET"): Promise<Answer> {
  const { hostname, port, pathname, search, host } = new URL(url);
  using connection = await Deno.connect({ hostname: hostname.replace(/^\[|\]$/g, ""), port: Number(port) });
  const lines = Object.entries({ Host: host, Connection: "close", ...headers }).map(([name, value]) =>
    `${name}: ${value}`
  );
  const request = `${method} ${pathname}${search} HTTP/1.1\r\n${lines.join("\r\n")}\r\nContent-Length: 0\r\n\r\n`;
  await connection.write(new TextEncoder().encode(request));
  const text = await new Response(connection.readable).text();
  const [head = "", ...body] = text.split("\r\n\r\n");
  const [status = "", ...fields] = head.split("\r\n");
  const received = fields.map((field): [string, string] => {
    const colon = field.indexOf(":");
    return [field.slice(0, colon), field.slice(colon + 1).trim()];
  });
  return { status: Number(status.split(" ")[1]), headers: new Headers(received), body: body.join("\r\n\r\n") };
}

/** A page that is open, as far as the inspector can tell, until disposed. */
export class OpenPage implements AsyncDisposable {
  readonly #url: string;
  readonly #abort: AbortController;
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>;

  private constructor(url: string, body: ReadableStream<Uint8Array>, abort: AbortController) {
    this.#url = url;
    this.#abort = abort;
    this.#reader = body.getReader();
  }

  /** Opens a page, and waits until its news come. */
  static async open(url: string): Promise<OpenPage> {
    const abort = new AbortController();
    const { body } = await fetch(`${url}events`, { signal: abort.signal });
    if (body === null) throw new Error("There is no stream of events");
    const page = new OpenPage(url, body, abort);
    await page.news();
    return page;
  }

  /** Waits for news; whether there were any, or nobody sends them any more. */
  async news(): Promise<boolean> {
    try {
      return !(await this.#reader.read()).done;
    } catch (error) {
      // The connection was closed in the middle of the stream.
      if (error instanceof TypeError) return false;
      throw error;
    }
  }

  /** Asks as the page does. */
  async ask(name: string, query: Record<string, string | number> = {}): Promise<Record<string, unknown>> {
    const texts = Object.entries(query).map(([key, value]) => [key, String(value)]);
    const response = await fetch(`${this.#url}${name}?${new URLSearchParams(texts)}`);
    return await response.json();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#abort.abort();
    await this.#reader.cancel().catch(() => {});
  }
}
