/**
 * The memory map of a guest in a browser, live, with its past.
 *
 * @module
 */

export { Inspector, type InspectorOptions, serveInspector } from "./serve.ts";
