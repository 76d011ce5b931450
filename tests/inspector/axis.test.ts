import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { Axis, Window } from "../../src/inspector/axis.ts";
import { PAGE } from "../support/units.ts";

const LIMIT = 2 ** 52;

const pages = fc.oneof(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 2 ** 28 }));
const regions = fc.array(
  fc.record({ start: fc.nat(2 ** 30), pages })
    .map(({ start, pages }) => ({ start: start * PAGE, end: (start + pages) * PAGE })),
  { maxLength: 20 },
);

Deno.test("on a folded axis all of 2^52 has a place, and places grow with addresses", () => {
  fc.assert(fc.property(regions, fc.array(fc.nat(2 ** 30)), (spans, some) => {
    const axis = Axis.folded(spans);
    assertEquals([axis.placeOf(0), axis.placeOf(LIMIT)], [0, axis.total]);
    const edges = spans.flatMap(({ start, end }) => [start, end]);
    const addresses = [...some.map((page) => page * PAGE), ...edges].sort((a, b) => a - b);
    for (const [i, address] of addresses.entries()) {
      const next = addresses[i + 1] ?? LIMIT;
      assert(axis.placeOf(address) <= axis.placeOf(next));
      if (next > address) assert(axis.placeOf(address) < axis.placeOf(next), `${address} and ${next} are in one place`);
    }
  }));
});

Deno.test("every boundary of a region is found again at its place", () => {
  fc.assert(fc.property(regions, (spans) => {
    const axis = Axis.folded(spans);
    for (const address of spans.flatMap(({ start, end }) => [start, end])) {
      assertEquals(axis.addressAt(axis.placeOf(address)), address);
    }
  }));
});

Deno.test("a fold is of one length whatever it leaves out, and no region is as short", () => {
  const axis = Axis.folded([{ start: PAGE, end: 2 * PAGE }, { start: 2 ** 40, end: 2 ** 40 + PAGE }]);
  const lengths = Array.from(axis.cuts).slice(1).map((cut, i) => axis.placeOf(cut) - axis.placeOf(axis.cuts[i] ?? 0));
  assertEquals(lengths, [1, 2, 1, 2, 1]);
});

Deno.test("between knots both places and addresses grow evenly, as exactly as a column", () => {
  const part = fc.double({ min: 0, max: 0.9, noNaN: true });
  fc.assert(fc.property(regions, part, fc.integer({ min: 1, max: 500 }), (spans, part, columns) => {
    const axis = Axis.folded(spans);
    const [from, to] = [part * axis.total, (part + 0.1) * axis.total];
    const step = (to - from) / columns;
    const knots = axis.knots(from, to, step);
    assertEquals([knots[0], knots.at(-2)], [from, to]);
    assert(knots.length <= 2 * (2 * columns + 3));
    for (let i = 0; i + 2 < knots.length; i += 2) {
      const [a = 0, x = 0, b = 0, y = 0] = knots.slice(i, i + 4);
      assert(a < b && x <= y);
      const middle = (x + y) / 2;
      const drawn = a + (b - a) * (middle - x) / (y - x || 1);
      assert(Math.abs(drawn - axis.placeOf(middle)) <= step * 1.001, `${drawn} is not ${axis.placeOf(middle)}`);
    }
  }));
});

Deno.test("a column begins before every address in it, and not far", () => {
  fc.assert(fc.property(regions, fc.nat(2 ** 30), (spans, at) => {
    const axis = Axis.folded(spans);
    const window = new Window(axis, 0, axis.total, 700);
    const address = (at + 1) * PAGE;
    const start = window.columnBefore(address);
    assert(start < address);
    assert(axis.placeOf(address) - axis.placeOf(start) <= window.step * 1.001 || start === address - 1);
  }));
});
