/**
 * What a scripted back end can be told: the messages between it and the test.
 *
 * @module
 */

import type { RequestName } from "../../src/vhost_user/protocol.ts";

/** What it does instead of answering as it should. */
export type Act =
  | "refuse" // says no
  | "hang" // says nothing, now or ever
  | "die" // closes without an answer
  | "die-mid-reply" // sends half an answer and closes
  | "ack-and-die" // answers and closes
  | "answer-another" // answers for another request
  | "answer-twice" // sends the answer twice
  | "many-fds" // sends nine descriptors along
  | "unwanted-fd" // sends one where none belongs
  | "huge" // announces a message of 4 GiB
  | "short" // sends an answer of three bytes
  | "long" // sends an answer of 512 bytes
  | "not-a-reply" // leaves the reply flag out
  | "version" // speaks version 3
  | "ask-first" // makes a request of its own and waits for the reply before it answers
  | "slow"; // answers 2 ms late

/** When it does that: at the `nth` (from 1) message of a kind. */
export interface Fault {
  readonly on: RequestName;
  readonly nth?: number;
  readonly act: Act;
}

/** What it is like. */
export interface Script {
  readonly features: bigint;
  readonly protocolFeatures: bigint;
  readonly queues?: number;
  readonly memSlots?: bigint;
  readonly config?: Uint8Array;
  /** Sizes of shared memory regions. */
  readonly shmem?: readonly number[];
  /** The memfd it keeps what it is working on in; it makes one itself when left out. */
  readonly faults?: readonly Fault[];
  /** What it asks for when it is to make a request first. */
  readonly asksFirst?: BackendAsk;
}

/** A request of its own. */
export interface BackendAsk {
  readonly request: number;
  readonly payload: Uint8Array<ArrayBuffer>;
  readonly fds: readonly number[];
  readonly needReply: boolean;
}

/** One region of its memory. */
export interface ScriptedRegion {
  readonly gpa: number;
  readonly length: number;
  readonly userAddress: number;
  readonly fileOffset: number;
}

/** What it knows. */
export interface ScriptedState {
  readonly regions: readonly ScriptedRegion[];
  readonly features: bigint;
  readonly protocolFeatures: bigint;
  /** The names of the messages it got, in order. */
  readonly log: readonly string[];
  readonly vrings: Readonly<Record<number, Readonly<Record<string, number>>>>;
  /** What the front end answered to its requests, in order. */
  readonly answers: readonly bigint[];
  /** The first number in the in-flight memory it was handed; null if it was handed none. */
  readonly inflight: number | null;
  /** How often connections were taken. */
  readonly connections: number;
}

export type Command =
  | { readonly kind: "serve"; readonly fd: number; readonly script: Script }
  | { readonly kind: "listen"; readonly path: string; readonly scripts: readonly Script[] }
  | { readonly kind: "state" }
  | { readonly kind: "read"; readonly gpa: number; readonly length: number }
  | { readonly kind: "write"; readonly gpa: number; readonly bytes: Uint8Array; readonly log?: boolean }
  | { readonly kind: "scribble" }
  | { readonly kind: "ask"; readonly asks: readonly BackendAsk[] }
  | { readonly kind: "bytes"; readonly bytes: Uint8Array<ArrayBuffer>; readonly where: "front" | "back" }
  | { readonly kind: "die" }
  | { readonly kind: "stop" };
