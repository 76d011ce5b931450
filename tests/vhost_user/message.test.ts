import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { Mappable } from "membacking";
import { UnixSocket } from "../../ffi/os/socket.ts";
import * as message from "../../src/vhost_user/message.ts";
import { MessageSocket } from "../../src/vhost_user/message_socket.ts";
import { vringParts, vringStart } from "../../src/vhost_user/vring.ts";
import { descriptorNames } from "./rig.ts";

const hex = (bytes: Uint8Array) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const u48 = fc.integer({ min: 0, max: 2 ** 48 });
const u16 = fc.integer({ min: 0, max: 0xffff });

Deno.test("messages have the bytes the specification says", () => {
  assertEquals(
    hex(message.encodeMessage(37, 8, new Uint8Array([1, 2]))),
    "25000000" + "09000000" + "02000000" + "0102",
  );
  assertEquals(hex(message.encodeVringState(3, 0x1234)), "03000000" + "34120000");
  assertEquals(
    hex(
      message.encodeMemReg({ gpa: 0x1_0000_1000, length: 0x2000, userAddress: 0x7f00_0000_3000, fileOffset: 0x4000 }),
    ),
    "0000000000000000" + "0010000001000000" + "0020000000000000" + "00300000007f0000" + "0040000000000000",
  );
  assertEquals(hex(message.encodeLog(0x2000, 0)), "0020000000000000" + "0000000000000000");
  assertEquals(hex(message.encodeConfig(4, 1, new Uint8Array([9]))), "04000000" + "01000000" + "01000000" + "09");
  const addr = { index: 1, flags: 1, descriptor: 0x10, used: 0x20, available: 0x30, log: 0x40 };
  assertEquals(
    hex(message.encodeVringAddr(addr)),
    "01000000" + "01000000" + ["10", "20", "30", "40"].map((byte) => byte + "00000000000000").join(""),
  );
});

Deno.test("whatever is encoded is decoded as it was", () => {
  const region = fc.record({ gpa: u48, length: u48, userAddress: u48, fileOffset: u48 });
  fc.assert(fc.property(fc.array(region, { maxLength: 8 }), (regions) => {
    assertEquals(message.decodeRegions(message.encodeMemTable(regions), false), regions);
  }));
  fc.assert(fc.property(region, (one) => {
    assertEquals(message.decodeRegions(message.encodeMemReg(one), true), [one]);
  }));
  const shmem = fc.record({
    ...{ shmid: fc.integer({ min: 0, max: 255 }), fdOffset: u48, shmOffset: u48, length: u48, writable: fc.boolean() },
  });
  fc.assert(fc.property(shmem, (request) => {
    assertEquals(message.decodeShmem(message.encodeShmem(request)), request);
  }));
  const inflight = fc.record({ mmapSize: u48, mmapOffset: u48, numQueues: u16, queueSize: u16 });
  fc.assert(fc.property(inflight, (memory) => {
    assertEquals(message.decodeInflight(message.encodeInflight(memory)), memory);
  }));
});

Deno.test("bytes that are no message decode to nothing, and never throw", () => {
  const decoders = [
    message.decodeU64,
    message.decodeVringState,
    message.decodeConfig,
    message.decodeInflight,
    message.decodeShmem,
    message.decodeShmemConfig,
  ];
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 80 }), (bytes) => {
      for (const decode of decoders) decode(new Uint8Array(bytes));
    }),
    { numRuns: 500 },
  );
  for (const decode of decoders) assertEquals(decode(new Uint8Array(7)), null);
  assertEquals(message.decodeShmem(message.encodeShmem({ ...shmemRequest, length: 2 ** 53 })), null);
});

const shmemRequest = { shmid: 0, fdOffset: 0, shmOffset: 0, length: 0x1000, writable: true };

Deno.test("sizes of shared memory regions that are no pages, or are counted wrongly, are refused", () => {
  const config = (count: number, ...sizes: number[]) => {
    const bytes = new Uint8Array(8 + 8 * sizes.length);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, count, true);
    sizes.forEach((size, i) => view.setBigUint64(8 + 8 * i, BigInt(size), true));
    return bytes;
  };
  assertEquals(message.decodeShmemConfig(config(2, 0x1000, 0, 0x2000, 0)), [0x1000, 0, 0x2000]);
  assertEquals(message.decodeShmemConfig(config(1, 0x1000, 0x2000)), null);
  assertEquals(message.decodeShmemConfig(config(1, 0x1001)), null);
});

Deno.test("messages arrive whole however the bytes are cut", () => {
  const messages = fc.array(fc.record({ request: u16, payload: fc.uint8Array({ maxLength: 40 }) }), { maxLength: 5 });
  fc.assert(
    fc.property(messages, fc.array(fc.integer({ min: 1, max: 60 }), { maxLength: 10 }), (sent, cuts) => {
      const [one, other] = UnixSocket.pair("stream");
      using _one = one;
      using receiver = new MessageSocket(other);
      const bytes = sent.map(({ request, payload }) => message.encodeMessage(request, 0, payload));
      let stream = new Uint8Array(bytes.flatMap((each) => [...each]));
      const arrived: { request: number; payload: number[] }[] = [];
      const receive = () => {
        for (let got = receiver.receive(); got !== null; got = receiver.receive()) {
          arrived.push({ request: got.request, payload: [...got.payload] });
        }
      };
      for (const cut of [...cuts, stream.length]) {
        if (stream.length === 0) break;
        one.send(stream.subarray(0, cut));
        stream = stream.slice(cut);
        receive();
      }
      assertEquals(arrived, sent.map(({ request, payload }) => ({ request, payload: [...payload] })));
    }),
    { numRuns: 100 },
  );
});

Deno.test("descriptors that come with half a message are closed when it is given up", () => {
  using file = Mappable.memfd("half", 0x1000);
  const halves = () => descriptorNames().filter((link) => link.includes("memfd:half")).length;
  for (const giveUp of ["discard", "dispose"] as const) {
    const [one, other] = UnixSocket.pair("stream");
    using _one = one;
    using receiver = new MessageSocket(other);
    one.send(message.encodeMessage(1, 0, new Uint8Array(8)).subarray(0, 15), [file.fd, file.fd]);
    assertEquals(receiver.receive(), null);
    assertEquals(halves(), 3);
    if (giveUp === "discard") receiver.discard();
    else receiver[Symbol.dispose]();
    assertEquals(halves(), 1);
  }
});

Deno.test("a peer that reads nothing is given up instead of being written to without end", () => {
  const [one, other] = UnixSocket.pair("stream");
  using _other = other;
  using sender = new MessageSocket(one);
  let error: unknown;
  for (let sent = 0; sent < 1000 && error === undefined; sent++) {
    try {
      sender.send(1, 0, new Uint8Array(4000), [other.fd]);
    } catch (thrown) {
      error = thrown;
    }
  }
  assert(error instanceof Error && error.message.includes("unread"));
});

Deno.test("a vring is checked before a back end hears of it", () => {
  const ring = { size: 8, descriptor: 0x1000, available: 0x2000, used: 0x3000 };
  const wrong = [
    { ...ring, size: 0 },
    { ...ring, size: 6 },
    { ...ring, size: 0x1_0000 },
    { ...ring, descriptor: 0x1008 },
    { ...ring, available: 0x2001 },
    { ...ring, used: 0x3002 },
    { ...ring, used: NaN },
    { ...ring, base: 2 ** 32 },
  ];
  for (const each of wrong) {
    let thrown: unknown;
    try {
      vringParts(0, each, false);
    } catch (error) {
      thrown = error;
    }
    assert(thrown instanceof RangeError || thrown instanceof TypeError, Deno.inspect(each));
  }
  assertEquals(vringParts(0, ring, false).map(({ length }) => length), [128, 22, 70]);
  assertEquals(vringParts(0, { ...ring, size: 6 }, true).map(({ length }) => length), [96, 4, 4]);
});

Deno.test("a vring is told where it is before it is kicked, and enabled last", () => {
  const ring = { size: 8, descriptor: 0x1000, available: 0x2000, used: 0x3000 };
  const start = { index: 0, ring, base: 0, userBase: 0x7f00_0000_0000, log: false, enabled: true };
  const names = vringStart(start).map(({ request }) => request);
  assertEquals(names, [
    ...["SET_VRING_NUM", "SET_VRING_BASE", "SET_VRING_ADDR", "SET_VRING_CALL", "SET_VRING_KICK", "SET_VRING_ENABLE"],
  ]);
  assertEquals(vringStart({ ...start, enabled: null }).at(-1)?.request, "SET_VRING_KICK");
});
