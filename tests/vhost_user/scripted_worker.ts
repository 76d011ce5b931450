/**
 * A back end that does what a script says, in a Worker, so that it answers while the front end's thread waits for it.
 *
 * @module
 */

import { Mappable } from "../../ffi/files/mappable.ts";
import { OsError } from "../../ffi/os/os_error.ts";
import { type FdWatch, Poll, watchFd } from "../../ffi/os/poll.ts";
import { closeFds, duplicateFd, UnixSocket } from "../../ffi/os/socket.ts";
import {
  decodeInflight,
  decodeRegions,
  decodeU64,
  decodeVringState,
  encodeInflight,
  encodeU64,
  encodeVringState,
  type Message,
} from "../../src/vhost_user/message.ts";
import { MessageSocket } from "../../src/vhost_user/message_socket.ts";
import { FLAG_NEED_REPLY, Request, requestName } from "../../src/vhost_user/protocol.ts";
import { answer } from "./answer.ts";
import { Listener } from "./listener.ts";
import type { Act, BackendAsk, Command, Script, ScriptedRegion, ScriptedState } from "./script.ts";

interface WorkerScope {
  onmessage: ((event: MessageEvent<{ id: number; command: Command }>) => void) | null;
  postMessage(message: unknown): void;
  close(): void;
}
const scope = globalThis as unknown as WorkerScope;

interface Region extends ScriptedRegion {
  readonly file: Mappable;
}

let backend: ScriptedBackend | undefined;
let listener: Listener | undefined;
let listening: FdWatch | undefined;
let scripts: readonly Script[] = [];
let connections = 0;
let inflightFirst: number | null = null;

class ScriptedBackend implements Disposable {
  readonly #script: Script;
  readonly #front: MessageSocket;
  readonly #watch: FdWatch;
  #back: MessageSocket | undefined;
  #backWatch: FdWatch | undefined;
  #regions: Region[] = [];
  #features = 0n;
  #protocolFeatures = 0n;
  #log: string[] = [];
  #vrings: Record<number, Record<string, number>> = {};
  #answers: bigint[] = [];
  #kept: Mappable[] = [];
  #logFile: Mappable | undefined;
  #hung = false;
  #counts = new Map<string, number>();
  #answerLater: (() => void) | undefined;
  disposed = false;

  constructor(socket: UnixSocket, script: Script) {
    connections++;
    this.#script = script;
    this.#front = new MessageSocket(socket);
    this.#watch = watchFd(socket.fd, Poll.IN, () => this.#ready());
  }

  get state(): ScriptedState {
    return {
      regions: this.#regions.map(({ file: _, ...region }) => region),
      features: this.#features,
      protocolFeatures: this.#protocolFeatures,
      log: this.#log,
      vrings: this.#vrings,
      answers: this.#answers,
      inflight: inflightFirst,
      connections,
    };
  }

  #ready(): void {
    try {
      while (!this.disposed && !this.#hung) {
        const message = this.#front.receive();
        if (message === null) return;
        try {
          this.#serve(message);
        } finally {
          closeFds(message.fds);
        }
      }
      if (this.#hung) this.#watch.events = 0;
    } catch {
      this[Symbol.dispose]();
    }
  }

  #serve(message: Message): void {
    const name = requestName(message.request);
    this.#log.push(name);
    const nth = (this.#counts.get(name) ?? 0) + 1;
    this.#counts.set(name, nth);
    const fault = this.#script.faults?.find((each) => each.on === name && (each.nth ?? nth) === nth);
    if (fault?.act === "die") return this[Symbol.dispose]();
    if (fault?.act === "hang") {
      this.#hung = true;
      return;
    }
    let answer = fault?.act === "refuse" ? null : this.#carryOut(message);
    if (answer === undefined || answer === null) {
      const needsReply = (message.flags & FLAG_NEED_REPLY) !== 0;
      if (!needsReply) return;
      answer = { payload: encodeU64(answer === null ? 22 : 0), fds: [] };
    }
    this.#answer(message.request, answer.payload, answer.fds, fault?.act);
  }

  #answer(request: number, payload: Uint8Array<ArrayBuffer>, fds: readonly number[], act: Act | undefined): void {
    const { socket } = this.#front;
    if (answer(socket, request, payload, fds, act)) this[Symbol.dispose]();
    const later = () => {
      try {
        if (!this.disposed) answer(socket, request, payload, fds, undefined);
      } catch (error) {
        // The front end has hung up meanwhile.
        if (!(error instanceof OsError) || error.code !== "EPIPE") throw error;
        this[Symbol.dispose]();
      }
    };
    if (act === "slow") setTimeout(later, 2);
    if (act !== "ask-first") return;
    this.#answerLater = later;
    const { asksFirst } = this.#script;
    if (asksFirst !== undefined) this.ask([asksFirst]);
  }

  /** What it answers with; `undefined` for the usual acknowledgement, `null` for a refusal. */
  #carryOut(message: Message): { payload: Uint8Array<ArrayBuffer>; fds: readonly number[] } | undefined | null {
    const u64 = (value: bigint | number) => ({ payload: encodeU64(value), fds: [] });
    const { request, payload } = message;
    const script = this.#script;
    switch (request) {
      case Request.GET_FEATURES:
        return u64(script.features);
      case Request.SET_FEATURES:
        this.#features = decodeU64(payload) ?? 0n;
        return;
      case Request.GET_PROTOCOL_FEATURES:
        return u64(script.protocolFeatures);
      case Request.SET_PROTOCOL_FEATURES:
        this.#protocolFeatures = decodeU64(payload) ?? 0n;
        return;
      case Request.GET_QUEUE_NUM:
        return u64(script.queues ?? 1);
      case Request.GET_MAX_MEM_SLOTS:
        return u64(script.memSlots ?? 32n);
      case Request.SET_BACKEND_REQ_FD: {
        const [fd] = message.fds;
        if (fd === undefined) return null;
        const socket = UnixSocket.own(duplicateFd(fd));
        this.#back = new MessageSocket(socket);
        this.#backWatch = watchFd(socket.fd, Poll.IN, () => this.#heard());
        return;
      }
      case Request.SET_MEM_TABLE: {
        const regions = decodeRegions(payload, false);
        if (regions === null || regions.length !== message.fds.length) return null;
        for (const { file } of this.#regions) file[Symbol.dispose]();
        this.#regions = regions.map((region, i) => ({ ...region, file: Mappable.fromFd(message.fds[i]!) }));
        return;
      }
      case Request.ADD_MEM_REG: {
        const [region] = decodeRegions(payload, true) ?? [];
        if (region === undefined || message.fds.length !== 1) return null;
        const overlaps = this.#regions.some(({ gpa, length }) =>
          region.gpa < gpa + length && gpa < region.gpa + region.length
        );
        if (overlaps || this.#regions.length >= Number(script.memSlots ?? 32n)) return null;
        this.#regions.push({ ...region, file: Mappable.fromFd(message.fds[0]!) });
        return;
      }
      case Request.REM_MEM_REG: {
        const [region] = decodeRegions(payload, true) ?? [];
        const at = this.#regions.findIndex((each) =>
          each.gpa === region?.gpa && each.length === region.length && each.userAddress === region.userAddress
        );
        if (at < 0) return null;
        this.#regions.splice(at, 1)[0]?.file[Symbol.dispose]();
        return;
      }
      case Request.SET_VRING_NUM:
      case Request.SET_VRING_BASE:
      case Request.SET_VRING_ENABLE: {
        const state = decodeVringState(payload);
        if (state !== null) this.#vring(state.index)[requestName(request)] = state.num;
        return;
      }
      case Request.SET_VRING_ADDR: {
        const view = new DataView(payload.buffer);
        const ring = this.#vring(view.getUint32(0, true));
        ring.flags = view.getUint32(4, true);
        ring.descriptor = Number(view.getBigUint64(8, true));
        return;
      }
      case Request.SET_VRING_KICK:
      case Request.SET_VRING_CALL:
      case Request.SET_VRING_ERR: {
        const value = Number(decodeU64(payload) ?? 0n);
        const ring = this.#vring(value & 0xff);
        ring[requestName(request)] = message.fds.length;
        if (request === Request.SET_VRING_KICK) ring.running = 1;
        return;
      }
      case Request.GET_VRING_BASE: {
        const state = decodeVringState(payload);
        const index = state?.index ?? 0;
        const ring = this.#vring(index);
        ring.running = 0;
        return { payload: encodeVringState(index, (ring.SET_VRING_BASE ?? 0) + 3), fds: [] };
      }
      case Request.GET_CONFIG: {
        const view = new DataView(payload.buffer);
        const [offset, size] = [view.getUint32(0, true), view.getUint32(4, true)];
        const reply = payload.slice();
        const content = (script.config ?? new Uint8Array(0)).subarray(offset, offset + size);
        if (content.length < size) return { payload: new Uint8Array(0), fds: [] };
        reply.set(content, 12);
        return { payload: reply, fds: [] };
      }
      case Request.GET_STATUS:
        return u64(this.#vring(1000).status ?? 0);
      case Request.SET_STATUS:
        this.#vring(1000).status = Number(decodeU64(payload) ?? 0n);
        return;
      case Request.SET_LOG_BASE: {
        this.#logFile?.[Symbol.dispose]();
        this.#logFile = Mappable.fromFd(message.fds[0] ?? -1);
        return u64(0);
      }
      case Request.GET_INFLIGHT_FD: {
        const asked = decodeInflight(payload);
        const file = Mappable.memfd("inflight", 0x1000);
        this.#kept.push(file);
        file.write(0, new Uint8Array([77]));
        const description = { ...asked!, mmapSize: 0x1000, mmapOffset: 0 };
        return { payload: encodeInflight(description), fds: [file.fd] };
      }
      case Request.SET_INFLIGHT_FD: {
        using file = Mappable.fromFd(message.fds[0] ?? -1);
        const first = new Uint8Array(1);
        file.read(0, first);
        inflightFirst = first[0] ?? null;
        return;
      }
      case Request.GET_SHMEM_CONFIG: {
        const sizes = script.shmem ?? [];
        const reply = new Uint8Array(8 + 256 * 8);
        const view = new DataView(reply.buffer);
        view.setUint32(0, sizes.filter((size) => size > 0).length, true);
        sizes.forEach((size, i) => view.setBigUint64(8 + 8 * i, BigInt(size), true));
        return { payload: reply, fds: [] };
      }
      default:
        return;
    }
  }

  #vring(index: number): Record<string, number> {
    return this.#vrings[index] ??= {};
  }

  #file(gpa: number, length: number): { file: Mappable; at: number } {
    const region = this.#regions.find((each) => each.gpa <= gpa && gpa + length <= each.gpa + each.length);
    if (region === undefined) throw new RangeError(`The back end has no memory at ${gpa.toString(16)}`);
    return { file: region.file, at: region.fileOffset + gpa - region.gpa };
  }

  read(gpa: number, length: number): Uint8Array {
    const { file, at } = this.#file(gpa, length);
    const bytes = new Uint8Array(length);
    file.read(at, bytes);
    return bytes;
  }

  write(gpa: number, bytes: Uint8Array, log: boolean): void {
    const { file, at } = this.#file(gpa, bytes.length);
    file.write(at, bytes);
    if (!log || this.#logFile === undefined) return;
    const last = Math.floor((gpa + bytes.length - 1) / 4096);
    for (let page = Math.floor(gpa / 4096); page <= last; page++) {
      const byte = new Uint8Array(1);
      this.#logFile.read(page >> 3, byte);
      byte[0] = (byte[0] ?? 0) | 1 << (page & 7);
      this.#logFile.write(page >> 3, byte);
    }
  }

  /** Writes nonsense over everything it can reach. */
  scribble(): void {
    for (const { file, fileOffset, length } of this.#regions) {
      file.write(fileOffset, crypto.getRandomValues(new Uint8Array(Math.min(length, 65536))));
    }
    this.#logFile?.write(0, new Uint8Array(this.#logFile.size).fill(0xff));
  }

  ask(asks: readonly BackendAsk[]): void {
    for (const { request, payload, fds, needReply } of asks) {
      this.#back?.send(request, needReply ? FLAG_NEED_REPLY : 0, payload, fds);
    }
    if (this.#back?.isFull && this.#backWatch !== undefined) this.#backWatch.events = Poll.IN | Poll.OUT;
  }

  bytes(where: "front" | "back", bytes: Uint8Array<ArrayBuffer>): void {
    (where === "front" ? this.#front : this.#back)?.socket.send(bytes);
  }

  #heard(): void {
    try {
      this.#back?.flush();
      if (!this.#back?.isFull && this.#backWatch !== undefined) this.#backWatch.events = Poll.IN;
      while (this.#back !== undefined && !this.disposed) {
        const message = this.#back.receive();
        if (message === null) return;
        this.#answers.push(decodeU64(message.payload) ?? -1n);
        this.#answerLater?.();
        this.#answerLater = undefined;
      }
    } catch {
      this.#backWatch?.[Symbol.dispose]();
    }
  }

  [Symbol.dispose](): void {
    if (this.disposed) return;
    this.disposed = true;
    this.#watch[Symbol.dispose]();
    this.#backWatch?.[Symbol.dispose]();
    this.#front[Symbol.dispose]();
    this.#back?.[Symbol.dispose]();
    for (const { file } of this.#regions) file[Symbol.dispose]();
    for (const file of this.#kept) file[Symbol.dispose]();
    this.#logFile?.[Symbol.dispose]();
  }
}

function carryOut(command: Command): unknown {
  switch (command.kind) {
    case "serve":
      backend?.[Symbol.dispose]();
      backend = new ScriptedBackend(UnixSocket.own(duplicateFd(command.fd)), command.script);
      return;
    case "listen": {
      stopListening();
      scripts = command.scripts;
      const here = listener = new Listener(command.path);
      listening = watchFd(here.fd, Poll.IN, () => {
        const [script, ...rest] = scripts;
        if (script === undefined) return;
        if (rest.length > 0) scripts = rest;
        backend?.[Symbol.dispose]();
        backend = new ScriptedBackend(here.accept(), script);
      });
      return;
    }
    case "state":
      return backend?.state;
    case "read":
      return backend?.read(command.gpa, command.length);
    case "write":
      return backend?.write(command.gpa, command.bytes, command.log ?? false);
    case "scribble":
      return backend?.scribble();
    case "ask":
      return backend?.ask(command.asks);
    case "bytes":
      return backend?.bytes(command.where, command.bytes);
    case "die":
      return backend?.[Symbol.dispose]();
    case "stop":
      stopListening();
      backend?.[Symbol.dispose]();
      return;
  }
}

function stopListening(): void {
  listening?.[Symbol.dispose]();
  listener?.[Symbol.dispose]();
  listening = listener = undefined;
}

scope.onmessage = ({ data: { id, command } }) => {
  try {
    scope.postMessage({ id, result: carryOut(command) });
  } catch (error) {
    scope.postMessage({ id, error: String(error) });
  }
  if (command.kind === "stop") setTimeout(() => scope.close(), 0);
};
scope.postMessage({ id: 0 });
