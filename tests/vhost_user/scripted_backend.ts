/**
 * A back end that does what a script says, as a test holds it.
 *
 * @module
 */

import { UnixSocket } from "../../ffi/os/socket.ts";
import { F_PROTOCOL_FEATURES, ProtocolFeature } from "../../src/vhost_user/protocol.ts";
import { VhostUserFrontend, type VhostUserOptions } from "membacking/vhost-user";
import type { BackendAsk, Command, Script, ScriptedState } from "./script.ts";

const { MQ, LOG_SHMFD, REPLY_ACK, BACKEND_REQ, BACKEND_SEND_FD, CONFIG, INFLIGHT_SHMFD, SHMEM, STATUS } =
  ProtocolFeature;
const { RESET_DEVICE, CONFIGURE_MEM_SLOTS } = ProtocolFeature;

/** A virtio feature that stands for any. */
export const SOME_FEATURE = 1n << 32n;
/** The virtio feature of a back end that logs. */
export const LOG_ALL = 1n << 26n;

/** A back end that has everything. */
export const EVERYTHING: Script = {
  features: F_PROTOCOL_FEATURES | SOME_FEATURE | LOG_ALL,
  protocolFeatures: MQ | LOG_SHMFD | REPLY_ACK | BACKEND_REQ | BACKEND_SEND_FD | CONFIG | INFLIGHT_SHMFD | SHMEM |
    STATUS | RESET_DEVICE | CONFIGURE_MEM_SLOTS,
  queues: 2,
  memSlots: 32n,
  config: new Uint8Array(64).map((_, i) => i),
  shmem: [0x10_0000],
};

/** The same without one or more protocol features. */
export function without(features: bigint, script: Script = EVERYTHING): Script {
  return { ...script, protocolFeatures: script.protocolFeatures & ~features };
}

/** A scripted back end in a Worker. */
export class ScriptedBackend implements AsyncDisposable {
  readonly #worker: Worker;
  readonly #waiting = new Map<number, { resolve: (value: unknown) => void; reject: (error: Error) => void }>();
  #next = 1;
  #stopped = false;

  private constructor(worker: Worker) {
    this.#worker = worker;
    worker.onmessage = ({ data }: MessageEvent<{ id: number; result?: unknown; error?: string }>) => {
      const waiting = this.#waiting.get(data.id);
      this.#waiting.delete(data.id);
      if (data.error === undefined) waiting?.resolve(data.result);
      else waiting?.reject(new Error(data.error));
    };
  }

  /** Starts the Worker, with nobody connected to it. */
  static async start(): Promise<ScriptedBackend> {
    const worker = new Worker(new URL("./scripted_worker.ts", import.meta.url), { type: "module" });
    const backend = new ScriptedBackend(worker);
    await new Promise((resolve, reject) => backend.#waiting.set(0, { resolve, reject }));
    return backend;
  }

  #do(command: Command): Promise<unknown> {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, command });
    });
  }

  /** Connects a front end to it, by a socketpair. */
  async connect(script: Script = EVERYTHING, options: VhostUserOptions = {}): Promise<VhostUserFrontend> {
    const [ours, theirs] = UnixSocket.pair("stream");
    using _ours = ours;
    using _theirs = theirs;
    await this.#do({ kind: "serve", fd: theirs.fd, script });
    // The Worker has a duplicate: what is left here would keep the connection open when it closes its own.
    theirs[Symbol.dispose]();
    return await VhostUserFrontend.fromFd(ours.fd, options);
  }

  /** Has it listen at a path: one script for each connection, the last for all that follow. */
  async listen(path: string, ...scripts: readonly Script[]): Promise<void> {
    await this.#do({ kind: "listen", path, scripts });
  }

  /** What it knows. */
  async state(): Promise<ScriptedState> {
    return await this.#do({ kind: "state" }) as ScriptedState;
  }

  /** What it reads in guest memory. */
  async read(gpa: number, length: number): Promise<Uint8Array> {
    return await this.#do({ kind: "read", gpa, length }) as Uint8Array;
  }

  /** Has it write into guest memory, with a mark in its log or without. */
  async write(gpa: number, bytes: Uint8Array, options: { log?: boolean } = {}): Promise<void> {
    await this.#do({ kind: "write", gpa, bytes, ...options });
  }

  /** Has it write nonsense over all memory it has, and its log. */
  async scribble(): Promise<void> {
    await this.#do({ kind: "scribble" });
  }

  /** Has it make requests. */
  async ask(...asks: readonly BackendAsk[]): Promise<void> {
    await this.#do({ kind: "ask", asks });
  }

  /** What the front end has answered, once there are `count` answers. */
  async answers(count: number): Promise<readonly bigint[]> {
    while (true) {
      const { answers } = await this.state();
      if (answers.length >= count) return answers;
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  /** Has it send bytes as they are. */
  async bytes(where: "front" | "back", bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    await this.#do({ kind: "bytes", bytes, where });
  }

  /** Has it close everything. */
  async die(): Promise<void> {
    await this.#do({ kind: "die" });
  }

  /** Ends it. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#stopped) return;
    this.#stopped = true;
    await this.#do({ kind: "stop" });
  }
}
