/**
 * The memory in which a back end keeps what it is working on, so that its successor can go on with it.
 *
 * @module
 */

import { Mappable } from "../../ffi/files/mappable.ts";
import { checkNumber } from "../core/memory_range.ts";
import { type Connection, malformed } from "./connection.ts";
import { confirmed } from "./handshake.ts";
import { decodeInflight, encodeInflight, type InflightDescription } from "./message.ts";

/** In-flight memory, held by the front end while back ends come and go. */
export class InflightMemory implements Disposable {
  readonly #file: Mappable;
  readonly #description: InflightDescription;

  private constructor(file: Mappable, description: InflightDescription) {
    this.#file = file;
    this.#description = description;
  }

  /**
   * Has the back end make it, and use it.
   *
   * @throws {RangeError} If a number is 0 or does not fit 16 bits.
   * @throws {VhostUserError} If the back end does not give it, or lies about it.
   */
  static async get(connection: Connection, numQueues: number, queueSize: number): Promise<InflightMemory> {
    for (const [name, value] of [["queues", numQueues], ["queueSize", queueSize]] as const) {
      checkNumber(value, name);
      if (value === 0 || value > 0xffff) throw new RangeError(`${name} has 16 bits and is not 0, got ${value}`);
    }
    const memory = await InflightMemory.#ask(connection, numQueues, queueSize);
    try {
      await confirmed(connection, memory.message);
      return memory;
    } catch (error) {
      memory[Symbol.dispose]();
      throw error;
    }
  }

  static async #ask(connection: Connection, numQueues: number, queueSize: number): Promise<InflightMemory> {
    const payload = encodeInflight({ mmapSize: 0, mmapOffset: 0, numQueues, queueSize });
    return await connection.settled(connection.ask(
      { request: "GET_INFLIGHT_FD", payload, fds: [] },
      (message) => {
        const description = decodeInflight(message.payload);
        const [fd] = message.fds;
        if (description === null || fd === undefined) throw malformed(message);
        let file: Mappable;
        try {
          file = Mappable.fromFd(fd);
        } catch (error) {
          throw malformed(message, error);
        }
        const { mmapSize, mmapOffset } = description;
        if (mmapSize === 0 || mmapSize + mmapOffset > file.size) {
          file[Symbol.dispose]();
          throw malformed(message);
        }
        return new InflightMemory(file, description);
      },
      1,
    ));
  }

  /** The message that hands it to a back end. */
  get message(): { request: "SET_INFLIGHT_FD"; payload: Uint8Array<ArrayBuffer>; fds: readonly number[] } {
    return { request: "SET_INFLIGHT_FD", payload: encodeInflight(this.#description), fds: [this.#file.fd] };
  }

  /** Gives it up. */
  [Symbol.dispose](): void {
    this.#file[Symbol.dispose]();
  }
}
