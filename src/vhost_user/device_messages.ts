/**
 * Requests about the device that touch neither its memory nor its queues.
 *
 * @module
 */

import { checkNumber } from "../core/memory_range.ts";
import { malformed, u64Of } from "./connection.ts";
import { VhostUserError } from "./errors.ts";
import { confirmed } from "./handshake.ts";
import type { BackendLink } from "./link.ts";
import { decodeConfig, decodeShmemConfig, EMPTY, encodeConfig, encodeU64, type Message } from "./message.ts";
import { MAX_CONFIG_SIZE, type RequestName } from "./protocol.ts";
import type { Outgoing } from "./vring.ts";

/** Reads a part of the configuration space. */
export async function getConfig(link: BackendLink, offset: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
  checkConfig(offset, length);
  link.need("CONFIG", "GET_CONFIG");
  return await ask(link, "GET_CONFIG", encodeConfig(offset, 0, new Uint8Array(length)), (message) => {
    // A back end says no by an answer without content, or without anything.
    const config = message.payload.length === 0 ? undefined : decodeConfig(message.payload);
    if (config === undefined || config?.content.length === 0) {
      throw new VhostUserError("refused", "GET_CONFIG", `The back end has no ${length} bytes at ${offset} to read`);
    }
    if (config === null || config.offset !== offset || config.content.length !== length) throw malformed(message);
    return config.content;
  });
}

/** Writes a part of the configuration space. */
export async function setConfig(
  link: BackendLink,
  offset: number,
  content: Uint8Array,
  migration: boolean,
): Promise<void> {
  checkConfig(offset, content.length);
  link.need("CONFIG", "SET_CONFIG");
  await confirm(link, "SET_CONFIG", encodeConfig(offset, migration ? 1 : 0, content));
}

/** Reads the device status. */
export async function getStatus(link: BackendLink): Promise<number> {
  link.need("STATUS", "GET_STATUS");
  return await ask(link, "GET_STATUS", EMPTY, (message) => {
    const status = u64Of(message);
    if (status > 0xffn) throw malformed(message);
    return Number(status);
  });
}

/** Sets the device status. */
export async function setStatus(link: BackendLink, status: number): Promise<void> {
  checkNumber(status, "Device status");
  if (status > 0xff) throw new RangeError(`A device status has eight bits, got ${status}`);
  link.need("STATUS", "SET_STATUS");
  await confirm(link, "SET_STATUS", encodeU64(status));
}

/** Has a MAC address announced. */
export async function sendRarp(link: BackendLink, mac: Uint8Array): Promise<void> {
  if (!(mac instanceof Uint8Array) || mac.length !== 6) throw new RangeError("A MAC address has six bytes");
  link.need("RARP", "SEND_RARP");
  const payload = new Uint8Array(8);
  payload.set(mac);
  await confirm(link, "SEND_RARP", payload);
}

/** Tells the MTU. */
export async function netSetMtu(link: BackendLink, mtu: number): Promise<void> {
  checkNumber(mtu, "MTU");
  link.need("MTU", "NET_SET_MTU");
  await confirm(link, "NET_SET_MTU", encodeU64(mtu));
}

/** Reads the sizes of shared memory regions. */
export async function getShmemConfig(link: BackendLink): Promise<readonly number[]> {
  link.need("SHMEM", "GET_SHMEM_CONFIG");
  return await ask(link, "GET_SHMEM_CONFIG", EMPTY, (message) => {
    const sizes = decodeShmemConfig(message.payload);
    if (sizes === null) throw malformed(message);
    return sizes;
  });
}

/** Sends a request and waits for its acknowledgement, where the back end gives any. */
export function confirm(
  { connection }: BackendLink,
  request: RequestName,
  payload: Uint8Array<ArrayBuffer>,
): Promise<void> {
  return confirmed(connection, { request, payload, fds: [] });
}

/** Sends requests in one go and waits until all of them have been served. */
export async function confirmAll({ connection }: BackendLink, requests: readonly Outgoing[]): Promise<void> {
  for (const reply of connection.tellAll(requests)) await connection.settled(reply);
}

async function ask<T>(
  { connection }: BackendLink,
  request: RequestName,
  payload: Uint8Array<ArrayBuffer>,
  decode: (message: Message) => T,
): Promise<T> {
  return await connection.settled(connection.ask({ request, payload, fds: [] }, decode));
}

function checkConfig(offset: number, length: number): void {
  checkNumber(offset, "Offset");
  if (length === 0 || offset + length > MAX_CONFIG_SIZE) {
    throw new RangeError(`The configuration space has ${MAX_CONFIG_SIZE} bytes, not ${length} at ${offset}`);
  }
}
