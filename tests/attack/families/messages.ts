/**
 * Garbage on ports and in shared words: a peer that breaks the protocol is cut off, and harms nobody else.
 *
 * @module
 */

import { RegionManagerClient } from "membacking";
import { anyNumber, anything } from "../catalogue.ts";
import type { Family } from "../family.ts";
import type { Random } from "../random.ts";
import { baseline, leakedAtLast } from "../resources.ts";
import { Known } from "../stage.ts";

const wait = (milliseconds: number) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Sends what can be sent. */
function post(port: MessagePort, message: unknown, transfer: Transferable[] = []): void {
  try {
    port.postMessage(message, transfer);
  } catch {
    // Functions, symbols and live objects cannot be cloned.
  }
}

/** A message that looks like one of the protocol's, tampered with: one that was really sent, with fields exchanged. */
function tampered(random: Random, seen: readonly unknown[]): unknown {
  const message = seen.length > 0 ? random.of(seen) : { kind: random.of(["hello", "request", "bye", "reply"]) };
  if (typeof message !== "object" || message === null) return anything(random);
  const copy: Record<string, unknown> = { ...message };
  for (const name of Object.keys(copy)) if (random.oneIn(3)) copy[name] = anything(random);
  if (random.oneIn(3)) copy[random.of(["id", "kind", "port", "value", "error", "requests"])] = anything(random);
  return copy;
}

/** Writes over shared words. */
function scribble(random: Random, buffer: SharedArrayBuffer): void {
  const words = new Int32Array(buffer, 0, Math.floor(buffer.byteLength / 4));
  if (words.length === 0) return;
  for (let left = 1 + random.below(40); left > 0; left--) {
    Atomics.store(
      words,
      random.below(random.oneIn(2) ? Math.min(64, words.length) : words.length),
      anyNumber(random) | 0,
    );
  }
  if (random.oneIn(4)) new Float64Array(buffer, 0, Math.min(32, Math.floor(buffer.byteLength / 8))).fill(NaN);
}

/** All shared buffers in a message. */
function sharedIn(value: unknown, depth = 0): SharedArrayBuffer[] {
  if (value instanceof SharedArrayBuffer) return [value];
  if (ArrayBuffer.isView(value)) return value.buffer instanceof SharedArrayBuffer ? [value.buffer] : [];
  if (typeof value !== "object" || value === null || depth > 5) return [];
  return Object.values(value).flatMap((part) => sharedIn(part, depth + 1));
}

const family: Family = {
  name: "messages",
  timeout: 60_000,
  async attack(random, notes) {
    new Known()[Symbol.dispose]();
    const before = await baseline();
    {
      using known = new Known();
      const scribbles: SharedArrayBuffer[] = [];
      const spoil = (buffer: SharedArrayBuffer) => {
        scribbles.push(buffer);
        scribble(random, buffer);
      };
      for (let round = 0; round < 12; round++) {
        const { port1, port2 } = new MessageChannel();
        const seen: unknown[] = [];
        notes.try("serve", () => known.manager.serve(port1, { deadline: 200 }));
        // A client that is one, listened to, so that what follows looks like the protocol.
        let client: RegionManagerClient | undefined;
        if (random.oneIn(3)) {
          port2.onmessage = ({ data }) => void seen.push(data);
          for (let i = 0; i < 30; i++) {
            post(port2, random.oneIn(2) ? anything(random) : tampered(random, seen));
            if (random.oneIn(5)) {
              const { port1: other } = new MessageChannel();
              post(port2, { kind: "hello", id: other, port: other }, [other]);
            }
            if (random.oneIn(5)) await wait(0);
            for (const buffer of seen.flatMap((one) => sharedIn(one))) if (random.oneIn(3)) spoil(buffer);
          }
        } else {
          using stack = new DisposableStack();
          const { port1: ours, port2: theirs } = new MessageChannel();
          // In the middle: passes messages on, and changes some.
          port2.onmessage = ({ data, ports }) => {
            seen.push(data);
            for (const buffer of sharedIn(data)) if (random.oneIn(4)) spoil(buffer);
            post(ours, random.oneIn(8) ? tampered(random, seen) : data, [...ports]);
          };
          const pass = (data: unknown, ports: readonly MessagePort[]) => {
            seen.push(data);
            post(port2, random.oneIn(8) ? tampered(random, seen) : data, [...ports]);
            if (random.oneIn(20)) post(port2, data);
          };
          ours.onmessage = ({ data, ports: [messages] }) => {
            if (messages === undefined || random.oneIn(3)) return pass(data, messages === undefined ? [] : [messages]);
            // What the client says after its hello is passed on where the owner takes it too.
            messages.onmessage = ({ data, ports }) => pass(data, ports);
            stack.defer(() => messages.close());
            const { messages: _, ...hello } = data;
            pass(hello, []);
          };
          const signal = AbortSignal.timeout(500);
          client = await notes.tryLater("connect", () => RegionManagerClient.connect(theirs, { signal }));
          for (let i = 0; i < 10 && client !== undefined; i++) {
            const one = client;
            await notes.tryLater("a request through the middle", () => Promise.race([one.inspect(), wait(100)]));
            notes.try("an access", () => one.memory.isMapped(0, 0x1000));
          }
          notes.try("dispose", () => client?.[Symbol.dispose]());
          ours.close();
        }
        notes.try("a request", () => known.region.map({ writable: false }));
        notes.try("a request", () => known.region.map({ writable: true }));
        port2.close();
        // An honest client is served all the same.
        const honest = new MessageChannel();
        notes.try("serve", () => known.manager.serve(honest.port1));
        const friend = await notes.tryLater(
          "an honest client",
          () => RegionManagerClient.connect(honest.port2, { signal: AbortSignal.timeout(5000) }),
        );
        notes.claim(friend !== undefined, "an honest client was not served after garbage");
        const there = known.manager.regions().map(({ name, range, priority }) => `${name} ${range} ${priority}`);
        let sees: unknown = "nothing";
        notes.try("an honest access", () => {
          if (friend?.memory.isMapped(0, 1)) sees = friend.memory.readUint8(0);
        });
        // All clients look at one map: who writes over it blinds the others, but not the owner.
        notes.claim(sees === 0x5a || scribbles.length > 0, `an honest client sees ${sees}, there are ${there}`);
        friend?.[Symbol.dispose]();
      }
      known.check(notes);
    }
    for (const left of await leakedAtLast(before)) notes.broken(left);
  },
};

export default family;
