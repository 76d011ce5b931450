/**
 * Getting through to a back end, the first time and again.
 *
 * @module
 */

import { OsError } from "../../ffi/os/os_error.ts";
import { UnixSocket } from "../../ffi/os/socket.ts";
import { checkNumber } from "../core/memory_range.ts";
import { Connection } from "./connection.ts";
import { VhostUserError } from "./errors.ts";
import { type Agreement, confirmed, shakeHands } from "./handshake.ts";
import type { InflightMemory } from "./inflight.ts";
import { type BackendLink, logBase, type MemoryLink } from "./link.ts";
import { F_RING_PACKED } from "./protocol.ts";
import { nudge } from "./vrings.ts";

/** How long to wait before trying to connect again, in milliseconds. */
const RETRY = 10;

/** A connection, and what was agreed on over it. */
export interface Opened {
  readonly connection: Connection;
  readonly agreement: Agreement;
}

/**
 * Agrees with whoever is at the other end of a socket, which is taken over even if that fails.
 *
 * @param wanted The protocol features that may be used.
 * @param check Throws if what was agreed on will not do.
 */
export async function open(
  socket: UnixSocket,
  deadline: number,
  wanted: bigint,
  check: (agreement: Agreement) => void = () => {},
): Promise<Opened> {
  using undo = new DisposableStack();
  undo.use(socket);
  checkNumber(deadline, "Deadline");
  const connection = undo.use(new Connection(socket, deadline));
  const agreement = await shakeHands(connection, wanted);
  if (agreement.backendSocket !== null) undo.use(agreement.backendSocket);
  check(agreement);
  undo.move();
  return { connection, agreement };
}

/** A socket connected to `path`, as soon as somebody listens there; `patience` is in milliseconds. */
export async function connected(path: string, patience: number): Promise<UnixSocket> {
  checkNumber(patience, "Patience");
  const until = performance.now() + patience;
  while (true) {
    try {
      return UnixSocket.connect(path);
    } catch (error) {
      const mayCome = error instanceof OsError && ["ENOENT", "ECONNREFUSED", "EAGAIN"].includes(error.code);
      if (!mayCome || performance.now() >= until) throw error;
      await new Promise((resolve) => setTimeout(resolve, RETRY));
    }
  }
}

/**
 * Tells a back end that has agreed on features everything that its predecessor knew.
 *
 * @throws {VhostUserError} If it does not take it. The connection is closed then.
 */
export async function bringBack(link: BackendLink, inflight: InflightMemory | null): Promise<void> {
  const { connection } = link;
  using undo = new DisposableStack();
  undo.use(connection);
  if (link.features !== null) await confirmed(connection, link.featuresMessage(link.features));
  if (inflight !== null) await confirmed(connection, inflight.message);
  if (link.log !== null) await connection.settled(connection.ask(logBase(link.log), () => undefined));
  // From here to the end nothing comes in between: requests change the table of a back end that has it.
  link.ready = true;
  const { memory } = link;
  if (memory !== null) bringBackVrings(link, memory);
  undo.move();
}

function bringBackVrings(link: BackendLink, memory: MemoryLink): void {
  const { connection } = link;
  memory.introduce();
  for (const vring of link.vrings.in("lost")) {
    if (((link.features ?? 0n) & F_RING_PACKED) !== 0n) {
      const message = `Where packed vring ${vring.index} was left cannot be told, reset the device`;
      throw new VhostUserError("unsupported", "SET_VRING_BASE", message);
    }
    // The back end goes on behind what was used. A ring whose memory is not there waits for it, as a suspended one does.
    const isThere = vring.parts.every(({ gpa, length }) => memory.holds(gpa, length));
    if (!isThere) continue;
    vring.base = memory.readUint16(vring.ring.used + 2);
    vring.state = "suspended";
  }
  link.resume();
  if (connection.state !== "open") {
    throw connection.error ?? new VhostUserError("disconnected", "", "The back end has gone again");
  }
  // An interrupt may have been lost with the predecessor.
  for (const { ring } of link.vrings.in("running")) nudge(ring.call);
}
