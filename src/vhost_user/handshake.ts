/**
 * What front end and back end agree on before anything else.
 *
 * @module
 */

import { UnixSocket } from "../../ffi/os/socket.ts";
import { type Connection, u64Of } from "./connection.ts";
import { VhostUserError } from "./errors.ts";
import { EMPTY, encodeU64 } from "./message.ts";
import {
  F_PROTOCOL_FEATURES,
  KNOWN_PROTOCOL_FEATURES,
  MAX_VRINGS,
  ProtocolFeature,
  type RequestName,
} from "./protocol.ts";
import type { Outgoing } from "./vring.ts";

/** No back end needs more memory slots than this, whatever it says: a table of them is gone through on each change. */
const MAX_MEM_SLOTS = 4096;

/** What was agreed on. */
export interface Agreement {
  /** The virtio features that the back end offers, the bits of vhost-user itself among them. */
  readonly offered: bigint;
  /** The protocol features in use. */
  readonly protocolFeatures: bigint;
  /** How many vrings it can have, `null` where it does not say. */
  readonly queueCount: number | null;
  /** How many memory regions it can hold one by one, `null` where its table is sent as a whole. */
  readonly memSlots: number | null;
  /** The front end's end of the socket for requests of the back end, `null` where it makes none. */
  readonly backendSocket: UnixSocket | null;
}

/**
 * Asks the back end what it can do and says what is going to be used of it.
 *
 * @param wanted The protocol features that may be used.
 * @throws {VhostUserError} If the back end is none, or does not answer.
 */
export async function shakeHands(connection: Connection, wanted: bigint): Promise<Agreement> {
  const get = (request: RequestName) =>
    connection.settled(connection.ask({ request, payload: EMPTY, fds: [] }, (message) => u64Of(message)));
  const offered = await get("GET_FEATURES");
  let protocolFeatures = 0n;
  if ((offered & F_PROTOCOL_FEATURES) !== 0n) {
    protocolFeatures = usable(await get("GET_PROTOCOL_FEATURES") & wanted & KNOWN_PROTOCOL_FEATURES);
    connection.post({ request: "SET_PROTOCOL_FEATURES", payload: encodeU64(protocolFeatures), fds: [] });
  }
  const has = (feature: bigint) => (protocolFeatures & feature) !== 0n;
  connection.acknowledges = has(ProtocolFeature.REPLY_ACK);
  connection.post({ request: "SET_OWNER", payload: EMPTY, fds: [] });
  const queueCount = has(ProtocolFeature.MQ) ? count("GET_QUEUE_NUM", await get("GET_QUEUE_NUM"), MAX_VRINGS) : null;
  const memSlots = has(ProtocolFeature.CONFIGURE_MEM_SLOTS)
    ? count("GET_MAX_MEM_SLOTS", await get("GET_MAX_MEM_SLOTS"), MAX_MEM_SLOTS)
    : null;
  const backendSocket = has(ProtocolFeature.BACKEND_REQ) ? await offerSocket(connection) : null;
  return { offered, protocolFeatures, queueCount, memSlots, backendSocket };
}

/** Leaves out what makes no sense without something else. */
function usable(features: bigint): bigint {
  const { BACKEND_REQ, BACKEND_SEND_FD, SHMEM } = ProtocolFeature;
  if ((features & BACKEND_REQ) === 0n) return features & ~(BACKEND_SEND_FD | SHMEM);
  return (features & BACKEND_SEND_FD) === 0n ? features & ~SHMEM : features;
}

function count(request: RequestName, value: bigint, most: number): number {
  if (value > 0n) return value > BigInt(most) ? most : Number(value);
  throw new VhostUserError("protocol", request, `The back end answers ${request} with 0`);
}

async function offerSocket(connection: Connection): Promise<UnixSocket> {
  const [ours, theirs] = UnixSocket.pair("stream");
  using undo = new DisposableStack();
  undo.use(ours);
  using _theirs = theirs;
  await confirmed(connection, { request: "SET_BACKEND_REQ_FD", payload: EMPTY, fds: [theirs.fd] });
  undo.move();
  return ours;
}

/** Sends a request and waits for its acknowledgement, where the back end gives any. */
export async function confirmed(connection: Connection, out: Outgoing): Promise<void> {
  const reply = connection.tell(out);
  if (reply !== null) await connection.settled(reply);
}

/**
 * Throws unless a back end that has taken another's place can go on where that one was.
 *
 * @param features The virtio features in use.
 */
export function checkSuccessor(before: Agreement, now: Agreement, features: bigint, vrings: number): void {
  const lost = features & ~now.offered;
  if (lost !== 0n) throw lacks("features", lost);
  const lostProtocol = before.protocolFeatures & ~now.protocolFeatures;
  if (lostProtocol !== 0n) throw lacks("protocol features", lostProtocol);
  if (now.queueCount !== null && now.queueCount < vrings) {
    throw new VhostUserError("unsupported", "", `The back end has ${now.queueCount} queues and ${vrings} are in use`);
  }
}

function lacks(what: string, bits: bigint): VhostUserError {
  return new VhostUserError("unsupported", "", `The back end lacks ${what} that are in use: 0x${bits.toString(16)}`);
}
