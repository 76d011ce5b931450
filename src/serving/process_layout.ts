/**
 * The files that the owner shares with clients in other processes: what is where in them.
 *
 * @module
 */

import { FAN_OUT, ROW } from "./page_codes.ts";

/** The file that one client and the owner write: `LINE`, then the locks. */
export const CLIENT_FILE = {
  /** Where the table of locks begins, in bytes. */
  locks: 4096,
  /** How many bytes there are: room for 65,536 locks. */
  size: 4096 + 2 ** 20,
} as const;

const NODES = 2 ** 15;
const ROWS = 2 ** 20;
const NODE_BYTES = NODES * FAN_OUT * Int32Array.BYTES_PER_ELEMENT;

/** The file that the owner writes and all clients read: nodes, then rows. It costs memory where it is used. */
export const MAP_FILE = {
  /** How many words of nodes there is room for. */
  words: NODES * FAN_OUT,
  /** Where the rows begin, in bytes. */
  rows: NODE_BYTES,
  /** How many numbers of rows there is room for. */
  numbers: ROWS * ROW.length,
  /** How many bytes there are. */
  size: NODE_BYTES + ROWS * ROW.length * Float64Array.BYTES_PER_ELEMENT,
} as const;

/** How many descriptors are sent with one message. */
export const FILES_PER_MESSAGE = 200;
