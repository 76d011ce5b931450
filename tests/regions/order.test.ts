import { assertEquals, assertRejects, assertStrictEquals, assertThrows } from "@std/assert";
import { MappingError, type MemoryRange, type Quiesce } from "membacking";
import { Rig, slots } from "./rig.ts";
import { range } from "../support/units.ts";

/** A quiesce hook that notes when the guest is held, between the calls of the rig it is given to. */
function holding(): { quiesce: Quiesce; attach(rig: Rig): void; held: string[][]; take(rig: Rig): string[] } {
  let rig: Rig;
  let inside: number | null = null;
  const spans: { from: number; to: number }[] = [];
  const held: string[][] = [];
  return {
    held,
    attach: (to) => {
      rig = to;
    },
    quiesce: ({ ranges }: { readonly ranges: readonly MemoryRange[] }) => {
      held.push(ranges.map(String));
      inside = rig.calls.length;
      return {
        [Symbol.dispose]() {
          spans.push({ from: inside!, to: rig.calls.length });
          inside = null;
        },
      };
    },
    /** The calls of the last request, those made while the guest was held in brackets. */
    take: (rig) => {
      const calls = rig.take();
      const taken = spans.splice(0);
      held.length = 0;
      return calls.map((call, i) => taken.some(({ from, to }) => from <= i && i < to) ? `[${call}]` : call);
    },
  };
}

function quietRig(options: ConstructorParameters<typeof Rig>[0] = {}): Rig & { hold: ReturnType<typeof holding> } {
  const hold = holding();
  const rig = new Rig({ ...options, quiesce: hold.quiesce });
  hold.attach(rig);
  return Object.assign(rig, { hold });
}

Deno.test("effects come in one order: DMA unmaps, partition unmaps, replacements, removals, DMA maps, partition maps", () => {
  using rig = new Rig();
  rig.partition();
  rig.dmaTarget();
  const low = rig.region(0x0, 0x4000, { priority: 0 });
  low.addMapping({ rangeInRegion: range(0x0, 0x2000), mappable: rig.file() });
  low.map();
  const high = rig.region(0x0, 0x4000, { priority: 1 });
  high.addMapping({ rangeInRegion: range(0x1000, 0x3000), mappable: rig.file(), writable: false });
  rig.take();
  high.map();
  assertEquals(rig.take(), [
    "dma.unmapDma 0x0-0x2000",
    "partition.unmapRange 0x0-0x2000",
    "va.map 0x1000-0x3000 ro",
    "va.remove 0x0-0x1000",
    "dma.mapDma 0x1000-0x3000 ro",
    "partition.mapRange 0x1000-0x3000 ro",
  ]);
});

Deno.test("a region that is mapped alone does not hold the guest", () => {
  using rig = quietRig();
  rig.partition();
  const region = rig.region(0x0, 0x4000);
  region.addMapping({ rangeInRegion: range(0x0, 0x1000), mappable: rig.file() });
  region.addMapping({ rangeInRegion: range(0x2000, 0x3000), mappable: rig.file() });
  region.map();
  assertEquals(rig.hold.held, []);
});

Deno.test("a single replacement under a slot does not hold the guest", () => {
  using rig = quietRig();
  rig.partition();
  const region = rig.backed(0x0, 0x4000);
  const high = rig.backed(0x0, 0x4000, { priority: 1 });
  high.unmap();
  region.addMapping({ rangeInRegion: range(0x1000, 0x2000), mappable: rig.file() });
  assertEquals(rig.hold.held, []);
});

Deno.test("unmapping a region of one slot does not hold the guest", () => {
  using rig = quietRig();
  rig.partition();
  const region = rig.backed(0x0, 0x4000);
  region.unmap();
  assertEquals(rig.hold.held, []);
});

Deno.test("a slot that goes and comes back holds the guest around it", () => {
  using rig = quietRig();
  rig.partition();
  const region = rig.backed(0x0, 0x4000);
  rig.hold.take(rig);
  region.map({ writable: false });
  assertEquals(rig.hold.held, [["0x0-0x4000"]]);
  assertEquals(rig.hold.take(rig), [
    "[partition.unmapRange 0x0-0x4000]",
    "[va.protect 0x0-0x4000 ro]",
    "[partition.mapRange 0x0-0x4000 ro]",
  ]);
});

Deno.test("a slot that is cut holds the guest", () => {
  using rig = quietRig();
  rig.partition();
  const region = rig.backed(0x0, 0x4000);
  rig.hold.take(rig);
  region.removeMappings(range(0x1000, 0x2000));
  assertEquals(rig.hold.held, [["0x0-0x4000"]]);
});

Deno.test("two slots that go in one request hold the guest", () => {
  using rig = quietRig();
  rig.partition();
  const region = rig.backed(0x0, 0x1000);
  region.removeMappings(range(0x0, 0x1000));
  for (const start of [0x0, 0x2000]) {
    rig.backed(start + 0x4000, start + 0x5000);
  }
  const both = rig.region(0x4000, 0x8000, { priority: 1 });
  rig.hold.take(rig);
  both.map();
  assertEquals(rig.hold.held.length, 1);
});

Deno.test("several replacements that belong together hold the guest", () => {
  using rig = quietRig();
  rig.partition();
  const low = rig.region(0x0, 0x4000, { priority: 0 });
  const high = rig.region(0x0, 0x4000, { priority: 1 });
  for (const region of [low, high]) {
    for (const start of [0x0, 0x2000]) {
      region.addMapping({ rangeInRegion: range(start, start + 0x2000), mappable: rig.file() });
    }
  }
  low.map();
  rig.hold.take(rig);
  high.map();
  assertEquals(rig.hold.held, [["0x0-0x4000"]]);
  assertEquals(rig.hold.take(rig), ["[va.map 0x0-0x2000 rw]", "[va.map 0x2000-0x4000 rw]"]);
});

Deno.test("without a partition no guest is held", () => {
  using rig = quietRig();
  rig.dmaTarget();
  const region = rig.backed(0x0, 0x4000);
  region.map({ writable: false });
  region.removeMappings(range(0x1000, 0x2000));
  region.removeMappings(range(0x0, 0x4000));
  assertEquals(rig.hold.held, []);
});

Deno.test("the guest is let go when a step fails, after everything has been undone", () => {
  using rig = quietRig();
  const { target } = rig.partition();
  const region = rig.backed(0x0, 0x4000);
  rig.hold.take(rig);
  rig.faults.failAfter(2);
  assertThrows(() => region.map({ writable: false }), MappingError);
  const calls = rig.hold.take(rig);
  assertEquals(calls.filter((call) => !call.startsWith("[")), []);
  assertEquals(calls.at(-1), "[partition.mapRange 0x0-0x4000 rw]");
  assertEquals(slots(target), ["0x0-0x4000 rw"]);
});

Deno.test("a quiesce hook that throws fails the request before anything has changed", () => {
  let armed = false;
  using rig = new Rig({
    quiesce: () => {
      if (armed) throw new Error("the vCPU does not answer");
      return { [Symbol.dispose]() {} };
    },
  });
  const { target } = rig.partition();
  const region = rig.backed(0x0, 0x4000);
  rig.take();
  armed = true;
  assertThrows(() => region.map({ writable: false }), Error, "the vCPU does not answer");
  assertEquals([rig.take(), slots(target), region.mapParams?.writable], [[], ["0x0-0x4000 rw"], true]);
  armed = false;
  region.map({ writable: false });
  assertEquals(slots(target), ["0x0-0x4000 ro"]);
});

Deno.test("a quiesce hook that returns no disposable fails the request before anything has changed", () => {
  const answers: unknown[] = [undefined, {}, Promise.resolve({ [Symbol.dispose]() {} })];
  for (const answer of answers) {
    using rig = new Rig({ quiesce: (() => answer) as Quiesce });
    const { target } = rig.partition();
    const region = rig.backed(0x0, 0x4000);
    rig.take();
    assertThrows(() => region.map({ writable: false }), TypeError);
    assertEquals([rig.take(), slots(target)], [[], ["0x0-0x4000 rw"]]);
  }
});

Deno.test("a batch is one request: one change of host memory and of slots", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const result = rig.manager.batch(() => {
    const region = rig.region(0x0, 0x4000);
    region.addMapping({ rangeInRegion: range(0x0, 0x4000), mappable: rig.file() });
    region.map();
    region.map({ writable: false });
    region.addMapping({ rangeInRegion: range(0x0, 0x4000), mappable: rig.file() });
    assertEquals(rig.take(), []);
    return region;
  });
  assertEquals(rig.take(), ["va.map 0x0-0x4000 ro", "partition.mapRange 0x0-0x4000 ro"]);
  assertEquals([result.mapParams?.writable, slots(target)], [false, ["0x0-0x4000 ro"]]);
});

Deno.test("a batch whose net effect is nothing touches nothing", () => {
  using rig = new Rig();
  rig.partition();
  const region = rig.backed(0x0, 0x4000);
  const guarded = rig.backed(0x8000, 0x9000, { file: "private" });
  rig.take();
  rig.manager.batch(() => {
    region.unmap();
    guarded.unmap();
    region.map();
    guarded.map();
  });
  assertEquals(rig.take(), []);
});

Deno.test("moving a region in a batch is one plan", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const file = rig.file();
  const old = rig.backed(0x0, 0x2000, { file });
  rig.take();
  rig.manager.batch(() => {
    old[Symbol.dispose]();
    rig.backed(0x8000, 0xa000, { file });
  });
  assertEquals(rig.take(), [
    "partition.unmapRange 0x0-0x2000",
    "va.map 0x8000-0xa000 rw",
    "va.remove 0x0-0x2000",
    "partition.mapRange 0x8000-0xa000 rw",
  ]);
  assertEquals(slots(target), ["0x8000-0xa000 rw"]);
});

Deno.test("a batch whose callback throws changes nothing and passes the error on", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.backed(0x0, 0x2000);
  rig.take();
  const reason = new Error("changed my mind");
  const thrown = assertThrows(() =>
    rig.manager.batch(() => {
      region.unmap();
      rig.region(0x4000, 0x5000).map();
      rig.manager.batch(() => region.removeMappings(range(0, 0x1000)));
      throw reason;
    })
  );
  assertStrictEquals(thrown, reason);
  assertEquals([rig.take(), slots(target), region.mapParams?.writable], [[], ["0x0-0x2000 rw"], true]);
  rig.region(0x4000, 0x6000);
});

Deno.test("a batch in which one request fails and is caught keeps the others", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.backed(0x0, 0x2000);
  rig.manager.batch(() => {
    region.map({ writable: false });
    assertThrows(() => region.removeMappings(range(0x8000, 0x9000)), RangeError);
    assertThrows(() => rig.region(0x1000, 0x3000));
  });
  assertEquals(slots(target), ["0x0-0x2000 ro"]);
});

Deno.test("a batch within a batch that throws is forgotten, and the outer one may go on", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.backed(0x0, 0x2000);
  rig.manager.batch(() => {
    region.map({ writable: false });
    assertThrows(
      () =>
        rig.manager.batch(() => {
          region.unmap();
          rig.backed(0x4000, 0x5000);
          throw new Error("no");
        }),
      Error,
      "no",
    );
    assertEquals(region.mapParams?.writable, false);
  });
  assertEquals(slots(target), ["0x0-0x2000 ro"]);
  rig.region(0x4000, 0x6000);
});

Deno.test("a handle made in a batch that failed is dead, one disposed in it lives", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const survivor = rig.backed(0x0, 0x2000);
  let stillborn: ReturnType<Rig["region"]> | undefined;
  rig.faults.reset();
  assertThrows(() =>
    rig.manager.batch(() => {
      stillborn = rig.region(0x4000, 0x5000);
      survivor[Symbol.dispose]();
      throw new Error("no");
    })
  );
  assertThrows(() => stillborn!.map());
  stillborn![Symbol.dispose]();
  survivor.map({ writable: false });
  assertEquals(slots(target), ["0x0-0x2000 ro"]);
});

Deno.test("a batch whose plan fails halfway is undone as one", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const a = rig.backed(0x0, 0x2000);
  const b = rig.backed(0x4000, 0x6000);
  rig.faults.failAfter(3, { mode: "done-then-failed" });
  assertThrows(() =>
    rig.manager.batch(() => {
      a.map({ writable: false });
      b.map({ writable: false });
    }), MappingError);
  assertEquals([a.mapParams?.writable, b.mapParams?.writable], [true, true]);
  assertEquals(slots(target), ["0x0-0x2000 rw", "0x4000-0x6000 rw"]);
});

Deno.test("a batch whose callback returns a promise is refused and changes nothing", async () => {
  using rig = new Rig();
  const region = rig.backed(0x0, 0x2000);
  rig.take();
  // deno-lint-ignore require-await
  const request = async () => {
    region.unmap();
    throw new Error("later");
  };
  assertThrows(() => rig.manager.batch(request), TypeError);
  assertEquals([rig.take(), region.mapParams?.writable], [[], true]);
  await assertRejects(request, Error, "later");
});

Deno.test("targets are attached and detached in a batch along with the rest", () => {
  using rig = new Rig();
  const { handle, target: old } = rig.partition({ name: "old" });
  const region = rig.backed(0x0, 0x2000);
  rig.take();
  const { target } = rig.manager.batch(() => {
    handle[Symbol.dispose]();
    region.map({ writable: false });
    return rig.partition({ name: "new" });
  });
  assertEquals([slots(old), slots(target)], [[], ["0x0-0x2000 ro"]]);
  assertEquals(rig.take(), [
    "old.unmapRange 0x0-0x2000",
    "va.protect 0x0-0x2000 ro",
    "new.mapRange 0x0-0x2000 ro",
  ]);
});
