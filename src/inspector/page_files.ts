/**
 * The files of the page. They are text of this package's modules, so that serving them needs no permission to read.
 *
 * @module
 */

import api from "./page/api.js" with { type: "text" };
import app from "./page/app.js" with { type: "text" };
import details from "./page/details.js" with { type: "text" };
import draw from "./page/draw.js" with { type: "text" };
import html from "./page/index.html" with { type: "text" };
import keys from "./page/keys.js" with { type: "text" };
import looks from "./page/looks.js" with { type: "text" };
import news from "./page/news.js" with { type: "text" };
import past from "./page/past.js" with { type: "text" };
import place from "./page/place.js" with { type: "text" };
import pointer from "./page/pointer.js" with { type: "text" };
import scale from "./page/scale.js" with { type: "text" };
import search from "./page/search.js" with { type: "text" };
import style from "./page/style.css" with { type: "text" };

/** A file of the page. */
export interface PageFile {
  /** Its MIME type. */
  readonly type: string;
  /** What is in it. */
  readonly text: string;
}

const SCRIPT = "text/javascript; charset=utf-8";

/** The files by their paths below the token. */
export const PAGE_FILES: ReadonlyMap<string, PageFile> = new Map([
  ["", { type: "text/html; charset=utf-8", text: html }],
  ["style.css", { type: "text/css; charset=utf-8", text: style }],
  ["api.js", { type: SCRIPT, text: api }],
  ["app.js", { type: SCRIPT, text: app }],
  ["details.js", { type: SCRIPT, text: details }],
  ["draw.js", { type: SCRIPT, text: draw }],
  ["keys.js", { type: SCRIPT, text: keys }],
  ["looks.js", { type: SCRIPT, text: looks }],
  ["news.js", { type: SCRIPT, text: news }],
  ["past.js", { type: SCRIPT, text: past }],
  ["place.js", { type: SCRIPT, text: place }],
  ["pointer.js", { type: SCRIPT, text: pointer }],
  ["scale.js", { type: SCRIPT, text: scale }],
  ["search.js", { type: SCRIPT, text: search }],
]);
