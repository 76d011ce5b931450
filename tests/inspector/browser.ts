/// <reference lib="dom" />
/**
 * A real browser, as a test drives it.
 *
 * @module
 */

import { type Browser, type BrowserContextOptions, chromium, type Page } from "playwright-core";
import { testUnless } from "../support/require.ts";

/** Where Debian's package has it. */
const CHROMIUM = "/usr/bin/chromium";

/** Why there is no browser, `undefined` if there is one. */
export const noBrowser: string | undefined = (() => {
  try {
    Deno.statSync(CHROMIUM);
    return undefined;
  } catch {
    return `there is no ${CHROMIUM}: apt-get install chromium`;
  }
})();

/** A page that is open in a browser, with what it complained about. */
export class Tab {
  /** What was logged as an error, and exceptions nobody caught. */
  readonly complaints: string[] = [];
  /** Requests to anybody but the inspector. */
  readonly strangers: string[] = [];

  constructor(readonly page: Page, origin: string) {
    page.on("console", (message) => {
      if (message.type() === "error" || message.type() === "warning") this.complaints.push(message.text());
    });
    page.on("pageerror", (error) => this.complaints.push(error.message));
    page.on("request", (request) => {
      if (!request.url().startsWith(origin) && !request.url().startsWith("data:")) this.strangers.push(request.url());
    });
  }

  /** Waits until the page shows the map after request `number`. */
  async shows(number: number): Promise<void> {
    await this.page.waitForFunction((at) => document.body.dataset.at === at, String(number));
  }

  /** The pieces of a lane as its table says, most of it in words. */
  async rows(lane: string): Promise<[range: string, meaning: string, text: string][]> {
    return await this.page.$$eval(
      "#rows tbody tr",
      (rows, lane) =>
        rows.map((row) => [...(row as HTMLTableRowElement).cells].map((cell) => cell.textContent ?? ""))
          .filter(([label]) => label === lane)
          .map(([, range = "", , meaning = "", text = ""]): [string, string, string] => [range, meaning, text]),
      lane,
    );
  }

  /** The pixels of the strips, as PNG. */
  async strips(): Promise<Uint8Array> {
    return await this.page.locator("#strips").screenshot();
  }
}

let launched: Promise<Browser> | undefined;

/** Registers a test with a page in a browser; ignored, with the reason, where there is none. */
export function browserTest(
  name: string,
  test: (open: (url: string, options?: BrowserContextOptions) => Promise<Tab>) => Promise<void>,
): void {
  testUnless(noBrowser, name, async () => {
    // Chromium's sandbox needs user namespaces, which containers often lack; nothing but our own page is loaded.
    const browser = await (launched ??= chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"] }));
    const contexts: { close(): Promise<void> }[] = [];
    try {
      await test(async (url, options = {}) => {
        const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
        contexts.push(context);
        const tab = new Tab(await context.newPage(), new URL(url).origin);
        await tab.page.goto(url);
        return tab;
      });
    } finally {
      for (const context of contexts) await context.close();
    }
  });
}

/** Ends the browser; the last test of a file. */
export async function closeBrowser(): Promise<void> {
  await (await launched)?.close();
  launched = undefined;
}
