/**
 * What a front end has agreed on with its back end, whichever process that is at the moment, and the exchanges that are
 * made here and now in the middle of a request.
 *
 * @module
 */

import type { OpenFile } from "../../ffi/files/open_file.ts";
import type { UnixSocket } from "../../ffi/os/socket.ts";
import { GuestMemoryError } from "../core/errors.ts";
import { BackendChannel, type ServeBackend } from "./backend_channel.ts";
import { type Connection, malformed, type Reply } from "./connection.ts";
import type { DirtyLog } from "./dirty_log.ts";
import { VhostUserError } from "./errors.ts";
import type { Agreement } from "./handshake.ts";
import { decodeVringState, encodeLog, encodeU64, encodeVringState, type Message } from "./message.ts";
import type { Run, TableRules } from "./memory_table.ts";
import { F_LOG_ALL, F_PROTOCOL_FEATURES, MAX_TABLE_REGIONS, ProtocolFeature } from "./protocol.ts";
import { type Outgoing, vringAddr, type VringStart, vringStart } from "./vring.ts";
import { nudge, type Vring, Vrings } from "./vrings.ts";

/** The memory that a back end is given, as its front end sees it. */
export interface MemoryLink {
  /** The user address of GPA 0. */
  readonly userBase: number;
  /** Whether one entry of the table that the back end has holds all of these bytes. */
  holds(gpa: number, length: number): boolean;
  /** The 16-bit number at `gpa`. */
  readUint16(gpa: number): number;
  /** Gives a back end that has nothing yet all there is. Blocks. */
  introduce(): void;
  /** The back end is not the one it was: it has nothing any more. */
  lose(): void;
}

/** A front end and its back end. */
export class BackendLink {
  /** The connection of now. */
  connection: Connection;
  /** What was agreed on over it. */
  agreement: Agreement;
  /** The virtio features in use, `null` before the driver has chosen. */
  features: bigint | null = null;
  /** The vrings that were started. */
  readonly vrings: Vrings = new Vrings();
  /** The memory the back end is given. */
  memory: MemoryLink | null = null;
  /** Where the back end logs what it writes, `null` while it does not. */
  log: DirtyLog | null = null;
  /** Whether the back end has been told everything its predecessor knew, so that changes can be sent. */
  ready = true;

  constructor(connection: Connection, agreement: Agreement) {
    this.connection = connection;
    this.agreement = agreement;
  }

  /** What its memory table is like. */
  get rules(): TableRules<OpenFile> {
    const { memSlots } = this.agreement;
    const busy = (entry: Run<OpenFile>) =>
      this.vrings.in("running").some(({ parts }) =>
        parts.some(({ gpa, length }) => gpa < entry.end && entry.start < gpa + length)
      );
    return memSlots === null
      ? { kind: "whole", capacity: MAX_TABLE_REGIONS }
      : { kind: "slots", capacity: memSlots, busy };
  }

  /** Whether a protocol feature is in use. */
  has(feature: keyof typeof ProtocolFeature): boolean {
    return (this.agreement.protocolFeatures & ProtocolFeature[feature]) !== 0n;
  }

  /** @throws {VhostUserError} `"unsupported"` unless a protocol feature is in use. */
  need(feature: keyof typeof ProtocolFeature, request: string): void {
    if (this.has(feature)) return;
    throw new VhostUserError("unsupported", request, `The back end lacks ${feature}, so it has no ${request}`);
  }

  /** Whether the back end can log what it writes. */
  get canLog(): boolean {
    return this.has("LOG_SHMFD") && (this.agreement.offered & F_LOG_ALL) !== 0n;
  }

  /** Listens to requests of the back end. */
  listen(socket: UnixSocket, serve: ServeBackend): void {
    const { connection } = this;
    connection.backend = new BackendChannel(socket, serve, (error) => connection.cutOff(error));
  }

  /** The message that tells which virtio features are in use. */
  featuresMessage(features: bigint): Outgoing {
    const bits = features | (this.agreement.offered & F_PROTOCOL_FEATURES) | (this.log === null ? 0n : F_LOG_ALL);
    return { request: "SET_FEATURES", payload: encodeU64(bits), fds: [] };
  }

  /** @throws {GuestMemoryError} Unless every part of a vring lies in memory that the back end has now. */
  checkVring({ parts }: Vring): MemoryLink {
    const { memory } = this;
    if (memory === null) {
      throw new VhostUserError("unsupported", "SET_VRING_ADDR", "A vring needs memory, make a VhostUserMemory first");
    }
    for (const { gpa, length } of parts) {
      if (!memory.holds(gpa, length)) throw new GuestMemoryError("not-mapped", gpa, length);
    }
    return memory;
  }

  /** How a vring is to be started now. */
  startOf({ index, ring, base, enabled }: Vring, memory: MemoryLink): VringStart {
    const { offered } = this.agreement;
    return {
      ...{ index, ring, base, userBase: memory.userBase, log: this.log !== null },
      enabled: (offered & F_PROTOCOL_FEATURES) === 0n ? null : enabled,
    };
  }

  /** What a back end's answer to GET_VRING_BASE says of a vring. */
  baseOf(message: Message, index: number): number {
    const state = decodeVringState(message.payload);
    if (state === null || state.index !== index) throw malformed(message);
    return state.num;
  }

  /** The request for a vring to be left alone, and to say where. */
  askBase(index: number): Reply<number> {
    const out: Outgoing = { request: "GET_VRING_BASE", payload: encodeVringState(index, 0), fds: [] };
    return this.connection.ask(out, (message) => this.baseOf(message, index));
  }

  /** Has the back end leave vrings alone. Blocks. */
  suspend(vrings: readonly Vring[]): void {
    if (vrings.length === 0) return;
    const replies = vrings.map(({ index }) => this.askBase(index));
    this.connection.waitFor(replies);
    if (this.connection.state !== "open") return;
    vrings.forEach((vring, i) => {
      vring.base = replies[i]!.result();
      vring.state = "suspended";
    });
  }

  /** Has the back end take up the vrings whose memory is there again. Blocks. */
  resume(): void {
    const { memory } = this;
    if (memory === null) return;
    const vrings = this.vrings.in("suspended").filter(({ parts }) =>
      parts.every(({ gpa, length }) => memory.holds(gpa, length))
    );
    if (vrings.length === 0) return;
    const { connection } = this;
    const replies = connection.tellAll(vrings.flatMap((vring) => vringStart(this.startOf(vring, memory))));
    connection.waitFor(replies);
    if (connection.state !== "open") return;
    const error = refusalIn(replies);
    if (error !== null) {
      const message = `The back end does not take up its vrings again: ${error.message}`;
      return connection.cutOff(new VhostUserError("protocol", error.request, message, { cause: error }));
    }
    for (const vring of vrings) {
      vring.state = "running";
      // What the guest signalled in between went nowhere.
      nudge(vring.ring.kick);
    }
  }

  /**
   * Has the back end log what it writes from now on, into a log in place of the one before, if there is one. Blocks.
   *
   * @throws {VhostUserError} If it does not.
   */
  startLog(log: DirtyLog): void {
    const { connection, memory } = this;
    const before = this.log;
    this.log = log;
    try {
      const replies: Reply<unknown>[] = [connection.ask(logBase(log), () => undefined)];
      // A log that replaces another changes neither the features nor the vrings.
      if (before === null && this.features !== null) replies.push(...connection.tellAll(this.#logMessages(memory)));
      connection.waitFor(replies);
      const error = refusalIn(replies);
      if (error !== null) throw error;
    } catch (error) {
      this.log = before;
      throw error;
    }
  }

  /** Has the back end stop logging. Blocks. */
  stopLog(): void {
    this.log = null;
    const { connection } = this;
    if (this.features === null || connection.state !== "open") return;
    connection.waitFor(connection.tellAll(this.#logMessages(this.memory)));
  }

  #logMessages(memory: MemoryLink | null): Outgoing[] {
    const vrings = memory === null
      ? []
      : this.vrings.in("running").map((each) => vringAddr(this.startOf(each, memory)));
    return [this.featuresMessage(this.features ?? 0n), ...vrings];
  }
}

/** The message that says where the log is. */
export function logBase({ file }: DirtyLog): Outgoing {
  return { request: "SET_LOG_BASE", payload: encodeLog(file.size, 0), fds: [file.fd] };
}

/** What the first reply that is none says; `null` where all is well. */
export function refusalIn(replies: readonly { result(): unknown }[]): VhostUserError | null {
  for (const reply of replies) {
    try {
      reply.result();
    } catch (error) {
      if (error instanceof VhostUserError) return error;
      throw error;
    }
  }
  return null;
}
