import { assert, assertEquals, assertThrows } from "@std/assert";
import { Mappable } from "../../ffi/files/mappable.ts";
import { HostAddresses } from "../../ffi/host/host_addresses.ts";
import { hostView, revokeView } from "../../ffi/os/view.ts";
import { PAGE } from "../support/units.ts";

function setup() {
  const va = HostAddresses.reserve(2 ** 40);
  const memory = Mappable.memfd("ram", PAGE);
  va.map(0, PAGE, memory, 0, true, undefined);
  return {
    va,
    memory,
    [Symbol.dispose]() {
      va[Symbol.dispose]();
      memory[Symbol.dispose]();
    },
  };
}

Deno.test("a view is the memory itself: stores go both ways", () => {
  using host = setup();
  const view = hostView(host.va.base, PAGE);
  const bytes = new Uint8Array(view);
  host.memory.write(5, new Uint8Array([42]));
  assertEquals(bytes[5], 42);
  bytes[6] = 43;
  const back = new Uint8Array(1);
  host.memory.read(6, back);
  assertEquals(back[0], 43);
  revokeView(view);
});

Deno.test("revoking detaches every array on the buffer: reads give undefined, writes are ignored", () => {
  using host = setup();
  const view = hostView(host.va.base, PAGE);
  const bytes = new Uint8Array(view);
  const words = new DataView(view);
  revokeView(view);
  assert(view.detached);
  assertEquals([bytes.length, bytes[0]], [0, undefined]);
  bytes[0] = 1;
  assertThrows(() => words.getUint8(0), TypeError);
  revokeView(view);
  const back = new Uint8Array(1);
  host.memory.read(0, back);
  assertEquals(back[0], 0);
});

Deno.test("a view that was transferred away cannot be revoked, and says so", () => {
  using host = setup();
  const view = hostView(host.va.base, PAGE);
  const moved = structuredClone(view, { transfer: [view] });
  assertThrows(() => revokeView(view), TypeError, "transferred away");
  assertEquals(moved.byteLength, PAGE);
});

Deno.test("a view can be as long as a large guest's memory", () => {
  using host = setup();
  const view = hostView(host.va.base, 2 ** 36);
  assertEquals([view.byteLength, new Uint8Array(view)[0]], [2 ** 36, 0]);
  revokeView(view);
});

Deno.test("numbers that would take the process down are refused", () => {
  for (const address of [0, -1, 0.5, NaN, Infinity, 2 ** 47, 2 ** 53]) {
    assertThrows(() => hostView(address, 1), RangeError);
  }
  using host = setup();
  for (const length of [-1, 0.5, NaN, Infinity, 2 ** 47, 2 ** 60]) {
    assertThrows(() => hostView(host.va.base, length), RangeError);
  }
});
