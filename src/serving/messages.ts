/**
 * What arrives from a client, made sure of: a message has the shape that `protocol.ts` says, or is an error.
 *
 * What a request asks for is for the manager to check, as it checks what its own thread asks for. Here it is seen to that
 * there is something to check: numbers where numbers name things, lists where there are lists.
 *
 * @module
 */

import type { ThreadIdentity } from "../../ffi/os/thread.ts";
import { LANE_BYTES } from "./lane.ts";
import { ProtocolError } from "./protocol_error.ts";
import type { ChangeRequest, ClientMessage, Ends, FileReference, Hello, Mail, Request } from "./protocol.ts";
import { MAIL } from "./shared_words.ts";

type Fields = Readonly<Record<string, unknown>>;

/**
 * The message.
 *
 * @throws {ProtocolError} If it is none.
 */
export function readMessage(data: unknown): ClientMessage {
  const message = fieldsOf(data, "A message");
  switch (message.kind) {
    case "hello":
      return readHello(message);
    case "request":
      return {
        kind: "request",
        id: whole(message.id, "id"),
        order: message.order === undefined ? 0 : whole(message.order, "order"),
        request: readRequest(message.request),
      };
    case "skip":
      return { kind: "skip", order: whole(message.order, "order") };
    case "abort":
      return { kind: "abort", id: whole(message.id, "id") };
    case "file":
    case "forget":
      return { kind: message.kind, key: whole(message.key, "key") };
    case "serve":
      if (message.port !== null && !(message.port instanceof MessagePort)) {
        throw new ProtocolError("There is no port to be served at");
      }
      return { kind: "serve", port: message.port };
    case "released":
    case "let-go":
    case "bye":
      return { kind: message.kind };
    default:
      throw new ProtocolError(`There is no such message: ${printable(message.kind)}`);
  }
}

/**
 * The request.
 *
 * @throws {ProtocolError} If it is none.
 */
export function readRequest(data: unknown): Request {
  const request = fieldsOf(data, "A request");
  switch (request.kind) {
    case "batch":
      if (!Array.isArray(request.changes)) throw new ProtocolError("A batch has no list of changes");
      return { kind: "batch", changes: request.changes.map((change) => readChange(fieldsOf(change, "A change"))) };
    case "teardown":
    case "map-params":
    case "visible":
      return { kind: request.kind, region: whole(request.region, "region") };
    case "next-age":
    case "regions":
    case "inspect":
      return { kind: request.kind };
    // SAFETY, for the casts here and below: who is asked for these checks them as they come.
    case "memfd": {
      const { name, size, options } = request as { name: string; size: number; options?: object };
      return { kind: "memfd", name, size, options: options ?? {} };
    }
    case "open": {
      const { path, options } = request as { path: string; options?: object };
      return { kind: "open", path, options: options ?? {} };
    }
    default:
      return readChange(request);
  }
}

function readChange(change: Fields): ChangeRequest {
  switch (change.kind) {
    case "new-region": {
      const options = fieldsOf(change.options, "The options of a region");
      const { name, priority, type, holes } = options as {
        name: string;
        priority: number;
        type?: "ram";
        holes?: "exit";
      };
      return {
        kind: "new-region",
        options: {
          name,
          priority,
          range: ends(options.range),
          ...(type !== undefined && { type }),
          ...(holes !== undefined && { holes }),
          ...(options.age !== undefined && { age: whole(options.age, "age") }),
        },
      };
    }
    case "map":
      return {
        kind: "map",
        region: whole(change.region, "region"),
        params: fieldsOf(change.params ?? {}, "The params of a region"),
      };
    case "unmap":
      return { kind: "unmap", region: whole(change.region, "region") };
    case "add-mapping": {
      const { fileOffset, writable, copyOnWrite, policy } = change as Extract<ChangeRequest, { kind: "add-mapping" }>;
      return {
        kind: "add-mapping",
        region: whole(change.region, "region"),
        range: ends(change.range),
        file: change.file === "private" ? "private" : readFile(change.file),
        ...(fileOffset !== undefined && { fileOffset }),
        ...(writable !== undefined && { writable }),
        ...(copyOnWrite !== undefined && { copyOnWrite }),
        ...(policy !== undefined && { policy }),
      };
    }
    case "remove-mappings":
      return { kind: "remove-mappings", region: whole(change.region, "region"), range: ends(change.range) };
    case "remove":
      return { kind: "remove", region: whole(change.region, "region"), eventually: change.eventually === true };
    default:
      throw new ProtocolError(`There is no such request: ${printable(change.kind)}`);
  }
}

function readHello(message: Fields): Hello {
  const { tid, started } = fieldsOf(message.thread, "A thread");
  if (!Number.isInteger(tid) || Number(tid) <= 0 || Number(tid) > 0x7fff_ffff) {
    throw new ProtocolError(`There is no such thread: ${printable(tid)}`);
  }
  if (started !== null && (typeof started !== "string" || !/^\d{1,20}$/.test(started))) {
    throw new ProtocolError("A thread was started at no time");
  }
  const thread: ThreadIdentity = { tid: Number(tid), started };
  const { messages } = message;
  if (messages !== undefined && !(messages instanceof MessagePort)) {
    throw new ProtocolError("There is no port to take messages from");
  }
  const token = message.token === undefined ? 0 : whole(message.token, "token");
  return {
    kind: "hello",
    thread,
    token,
    ...(messages !== undefined && { messages }),
    ...(message.mail !== undefined && { mail: readMail(message.mail) }),
    ...(message.lane !== undefined && { lane: readLane(message.lane) }),
  };
}

function readMail(data: unknown): Mail {
  const { words, request, answer } = fieldsOf(data, "The mail");
  const isRight = words instanceof SharedArrayBuffer && words.byteLength >= MAIL.bytes &&
    request instanceof SharedArrayBuffer && answer instanceof SharedArrayBuffer;
  if (!isRight) throw new ProtocolError("The mail of a client is not the memory it has to be");
  return { words, request, answer };
}

function readLane(data: unknown): SharedArrayBuffer {
  if (data instanceof SharedArrayBuffer && data.byteLength >= LANE_BYTES) return data;
  throw new ProtocolError("The lane of a client is not the memory it has to be");
}

function readFile(data: unknown): FileReference {
  const { key, fd } = fieldsOf(data, "A file");
  return { key: whole(key, "key"), fd: whole(fd, "descriptor") };
}

function ends(data: unknown): Ends {
  if (!Array.isArray(data)) throw new ProtocolError("A range has no ends");
  const [start, end] = data as unknown[];
  if (typeof start !== "number" || typeof end !== "number") {
    throw new ProtocolError("The ends of a range are no numbers");
  }
  return [start, end];
}

function whole(value: unknown, what: string): number {
  if (Number.isSafeInteger(value)) return Number(value);
  throw new ProtocolError(`The ${what} is ${printable(value)}, not a whole number`);
}

function fieldsOf(data: unknown, what: string): Fields {
  if (typeof data === "object" && data !== null) return data as Fields;
  throw new ProtocolError(`${what} is ${printable(data)}, not an object`);
}

function printable(value: unknown): string {
  return typeof value === "string"
    ? JSON.stringify(value.slice(0, 40))
    : value === null
    ? "null"
    : typeof value === "number"
    ? String(value)
    : `a ${typeof value}`;
}
