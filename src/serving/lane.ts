/**
 * Messages in numbers from one thread to another, beside a port that takes the rest: all of them in the order in which
 * they were sent, whichever way they went.
 *
 * ```
 *   order   1      2      3      4      5
 *   lane    map    unmap         map          numbers in shared memory, and a bell
 *   port                  batch         inspect
 * ```
 *
 * Each message has a number. Who receives takes from the lane what is next; where the next one is not there, it comes by
 * the port; and what comes by the port finds everything before it in the lane, since that was written first.
 *
 * @module
 */

import { ProtocolError } from "./protocol_error.ts";

const SLOTS = 64;
const SLOT_NUMBERS = 10;
/** In each slot: the order, the id, the code, then what `mail_codes.ts` writes. */
const ORDER = 0;
const ID = 1;
const CODE = 2;
const REST = 3;

/** Words of one direction, 64 bytes apart. */
const HEAD = 0;
const TAIL = 16;
const NUMBERS_AT = 128;
const DIRECTION_BYTES = NUMBERS_AT + SLOTS * SLOT_NUMBERS * Float64Array.BYTES_PER_ELEMENT;

/** Where the client's bell is, in words, behind both directions. */
const BELL_AT = 2 * DIRECTION_BYTES / Int32Array.BYTES_PER_ELEMENT;

/** How many bytes a lane takes, both ways. */
export const LANE_BYTES: number = 2 * DIRECTION_BYTES + 64;

/** Which way messages go. */
export type Direction = "to-owner" | "to-client";

function viewsOf(lane: SharedArrayBuffer, direction: Direction): { words: Int32Array; numbers: Float64Array } {
  const at = direction === "to-owner" ? 0 : DIRECTION_BYTES;
  return {
    words: new Int32Array(lane, at, NUMBERS_AT / Int32Array.BYTES_PER_ELEMENT),
    numbers: new Float64Array(lane, at + NUMBERS_AT, SLOTS * SLOT_NUMBERS),
  };
}

/** The word that the owner rings to wake the client. */
export function clientBell(lane: SharedArrayBuffer): Int32Array {
  return new Int32Array(lane, BELL_AT * Int32Array.BYTES_PER_ELEMENT, 1);
}

/** The end that sends. What the other end says of itself is input. */
export class LaneSender {
  readonly #words: Int32Array;
  readonly #numbers: Float64Array;
  readonly #slots: readonly Float64Array[];
  #head = 0;
  #order = 0;

  constructor(lane: SharedArrayBuffer, direction: Direction) {
    const { words, numbers } = viewsOf(lane, direction);
    this.#words = words;
    this.#numbers = numbers;
    this.#slots = Array.from(
      { length: SLOTS },
      (_, slot) => numbers.subarray(slot * SLOT_NUMBERS + REST, (slot + 1) * SLOT_NUMBERS),
    );
  }

  /**
   * Sends a message by the lane, if there is room and `encode` makes numbers of it: it returns their code, 0 if it cannot.
   *
   * @returns 0 if it went; else its number, for the message to be sent by the port.
   */
  send(id: number, encode: (numbers: Float64Array) => number): number {
    const order = ++this.#order;
    const waiting = this.#head - Atomics.load(this.#words, TAIL) | 0;
    const slot = this.#head & (SLOTS - 1);
    const rest = this.#slots[slot];
    if (waiting < 0 || waiting >= SLOTS || rest === undefined) return order;
    let code = 0;
    try {
      code = encode(rest);
    } catch {
      // By the port, then, which tells what is wrong with it.
    }
    if (code === 0) return order;
    const at = slot * SLOT_NUMBERS;
    this.#numbers[at + ORDER] = order;
    this.#numbers[at + ID] = id;
    this.#numbers[at + CODE] = code;
    this.#head = this.#head + 1 | 0;
    Atomics.store(this.#words, HEAD, this.#head);
    return 0;
  }
}

/** The end that receives. What the other end has written is input, and read once. */
export class LaneReceiver {
  readonly #words: Int32Array;
  readonly #numbers: Float64Array;
  readonly #copy = new Float64Array(SLOT_NUMBERS);
  readonly #rest = this.#copy.subarray(REST);
  readonly #receive: (id: number, code: number, numbers: Float64Array) => void;
  #tail = 0;
  #next = 1;

  /** `receive` is handed what comes by the lane; the numbers are its own during the call. */
  constructor(
    lane: SharedArrayBuffer,
    direction: Direction,
    receive: (id: number, code: number, numbers: Float64Array) => void,
  ) {
    const { words, numbers } = viewsOf(lane, direction);
    this.#words = words;
    this.#numbers = numbers;
    this.#receive = receive;
  }

  /**
   * Hands on what is next and there: what comes meanwhile has its turn when the bell is rung for it. Returns how many
   * messages there were.
   *
   * @throws {ProtocolError} If the lane holds what nobody sends.
   */
  drain(): number {
    let count = 0;
    const head = Atomics.load(this.#words, HEAD);
    while (true) {
      const there = head - this.#tail | 0;
      if (there < 0 && count > 0) return count; // Handing one on has handed on others.
      if (there === 0) return count;
      if (there < 0 || there > SLOTS) throw new ProtocolError("A lane has more messages than it has room for");
      const at = (this.#tail & (SLOTS - 1)) * SLOT_NUMBERS;
      for (let i = 0; i < SLOT_NUMBERS; i++) this.#copy[i] = this.#numbers[at + i] ?? 0;
      const [order = NaN, id = NaN, code = NaN] = this.#copy;
      if (!Number.isSafeInteger(id) || !(order >= this.#next)) throw new ProtocolError("A lane holds no message");
      if (order > this.#next) return count; // The one before it comes by the port.
      this.#tail = this.#tail + 1 | 0;
      Atomics.store(this.#words, TAIL, this.#tail);
      this.#next++;
      count++;
      this.#receive(id, code, this.#rest);
    }
  }

  /**
   * Takes a message that came by the port, in its turn.
   *
   * @throws {ProtocolError} If it is not its turn.
   */
  accept(order: number, act: () => void): void {
    this.drain();
    if (order !== this.#next) throw new ProtocolError("A message is out of order");
    this.#next++;
    act();
    this.drain();
  }
}
