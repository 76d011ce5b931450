/**
 * The memory map of a guest in a browser, live, with its past.
 *
 * `serveInspector(guest).url` is the page. It needs `--allow-net`, and shows strips of the address space: what the guest
 * sees, the regions of each priority, the slots of each partition, DMA mappings, locks and clients, on an axis that folds
 * what is empty or is to scale, from 2^52 down to a page. Every request is listed with what it did and took; the map as
 * it was after each of them can be gone back to, and compared with any other.
 *
 * @module
 */

export { type Inspector, type InspectorOptions, serveInspector } from "./serve.ts";
