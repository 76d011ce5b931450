/**
 * Answers of a back end, right and wrong.
 *
 * @module
 */

import type { UnixSocket } from "../../ffi/os/socket.ts";
import { encodeMessage, HEADER_SIZE } from "../../src/vhost_user/message.ts";
import { FLAG_REPLY } from "../../src/vhost_user/protocol.ts";
import type { Act } from "./script.ts";

/**
 * Sends the answer to a request, or what takes its place.
 *
 * @returns Whether the back end is to die now.
 */
export function answer(
  socket: UnixSocket,
  request: number,
  payload: Uint8Array<ArrayBuffer>,
  fds: readonly number[],
  act: Act | undefined,
): boolean {
  const reply = encodeMessage(request, FLAG_REPLY, payload);
  const view = new DataView(reply.buffer);
  const send = (bytes: Uint8Array<ArrayBuffer>, along = fds) => void socket.send(bytes, along);
  switch (act) {
    case "slow":
    case "ask-first":
      return false;
    case "die-mid-reply":
      send(reply.subarray(0, HEADER_SIZE + 3));
      return true;
    case "ack-and-die":
      send(reply);
      return true;
    case "answer-another":
      view.setUint32(0, request + 1, true);
      break;
    case "answer-twice":
      send(reply);
      break;
    case "many-fds":
      send(reply, Array.from({ length: 9 }, () => socket.fd));
      return false;
    case "unwanted-fd":
      send(reply, [socket.fd, socket.fd]);
      return false;
    case "huge":
      view.setUint32(8, 0xffff_ffff, true);
      break;
    case "short":
      send(encodeMessage(request, FLAG_REPLY, payload.subarray(0, 3)));
      return false;
    case "long":
      send(encodeMessage(request, FLAG_REPLY, new Uint8Array(512)));
      return false;
    case "not-a-reply":
      view.setUint32(4, 1, true);
      break;
    case "version":
      view.setUint32(4, 3 | FLAG_REPLY, true);
      break;
  }
  send(reply);
  return false;
}
