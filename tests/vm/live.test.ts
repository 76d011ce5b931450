import { assertEquals, assertGreater, assertThrows } from "@std/assert";
import { Mappable, MappingError, type RegionHandle } from "membacking";
import { kvmTest, noKvm, testUnless } from "../support/require.ts";
import { LongModeCode, VcpuThread } from "../support/guest.ts";
import { HUGE_PAGE, noHugePageFiles, tooManyHugePages, unreservedHugePages } from "./huge_pages.ts";
import { Machine, Observed } from "./machine.ts";
import { stampPages, Watch } from "./watch.ts";
import { NOTES } from "./witness.ts";
import { PAGE, range } from "../support/units.ts";

const START = 0x10_0000;
const PAGES = 16;
const END = START + PAGES * PAGE;
const LENGTH = END - START;

/** How often memory is replaced under the guest. */
const REPLACEMENTS = 10_000;
/** After so many of them the guest gets the time to look. */
const PATIENCE = 500;

/** A machine whose guest is about to watch, files to show it, and a count of what KVM and the quiesce hook get to do. */
function stage(files: number, stretches = 1) {
  const stack = new DisposableStack();
  const hooks = { pause: (): Disposable => ({ [Symbol.dispose]() {} }) };
  let held = 0;
  const quiesce = () => (held++, hooks.pause());
  const machine = stack.use(new Machine({ quiesce }));
  const witness = machine.witness();
  const observed = new Observed(witness.vm);
  machine.regions.addPartition(observed);
  const mappables = Array.from({ length: files }, (_, i) => {
    const file = stack.use(Mappable.memfd(`generation ${i}`, stretches * LENGTH));
    for (let k = 0; k < stretches; k++) stampPages(file, k * LENGTH, START, END, 0);
    return file;
  });
  return {
    machine,
    witness,
    observed,
    hooks,
    file: (i: number) => mappables[i % files] ?? mappables[0]!,
    get held() {
      return held;
    },
    [Symbol.dispose]: () => stack.dispose(),
  };
}

kvmTest(
  `a guest that reads a mapping while it is replaced ${REPLACEMENTS} times sees the old or the new, all of it, and no exit`,
  async () => {
    using set = stage(2);
    const region = set.machine.backed(START, END, set.file(0));
    set.observed.take();
    await using watch = await Watch.start(set.witness, { start: START, end: END, together: true });
    for (let generation = 1; generation <= REPLACEMENTS; generation++) {
      const mappable = set.file(generation);
      watch.stamp(mappable, 0, START, END, generation);
      region.addMapping({ rangeInRegion: range(0, LENGTH), mappable });
      watch.shown(START, END, generation);
      if (generation % PATIENCE === 0) await watch.lookTwice();
    }
    assertGreater(watch.changesSeen, REPLACEMENTS / PATIENCE - 1);
    await watch.end();
    assertEquals([set.observed.take(), set.held], [[], 0], "memory slots and the hook were left alone");
  },
);

kvmTest(
  `a guest that reads a region while parts of it are replaced ${REPLACEMENTS} times sees every page old or new`,
  async () => {
    const stretches = 16;
    using set = stage(2, stretches);
    const region = set.machine.backed(START, END, set.file(0));
    set.observed.take();
    await using watch = await Watch.start(set.witness, { start: START, end: END, together: false });
    for (let generation = 1; generation <= REPLACEMENTS; generation++) {
      // Every range of pages comes up sooner or later, and not in order.
      const first = generation * 7 % PAGES;
      const from = START + first * PAGE;
      const to = from + (1 + generation * 11 % (PAGES - first)) * PAGE;
      const mappable = set.file(generation);
      const fileOffset = (generation >> 1) % stretches * LENGTH + from - START;
      watch.stamp(mappable, fileOffset, from, to, generation);
      region.addMapping({ rangeInRegion: range(from - START, to - START), mappable, fileOffset });
      watch.shown(from, to, generation);
      if (generation % PATIENCE === 0) await watch.lookTwice();
    }
    assertGreater(watch.changesSeen, REPLACEMENTS / PATIENCE - 1);
    await watch.end();
    assertEquals([set.observed.take(), set.held], [[], 0], "memory slots and the hook were left alone");
  },
);

kvmTest(`switching two regions ${REPLACEMENTS} times costs no slot change, no hook and no exit`, async () => {
  using set = stage(2);
  set.machine.backed(START, END, set.file(0));
  const high = set.machine.backed(START, END, set.file(1), { priority: 1 });
  set.observed.take();
  const slots = set.witness.slots;
  await using watch = await Watch.start(set.witness, { start: START, end: END, together: true });
  for (let generation = 1; generation <= REPLACEMENTS; generation++) {
    const up = generation % 2 === 0;
    watch.stamp(set.file(up ? 1 : 0), 0, START, END, generation);
    if (up) high.map();
    else high.unmap();
    watch.shown(START, END, generation);
    if (generation % PATIENCE === 0) await watch.lookTwice();
  }
  assertGreater(watch.changesSeen, REPLACEMENTS / PATIENCE - 1);
  await watch.end();
  assertEquals([set.observed.take(), set.held, set.witness.slots], [[], 0, slots]);
});

kvmTest("a switch of several mappings is one to a guest that the hook holds", async () => {
  const rounds = 1000;
  using set = stage(2);
  const [, high] = [0, 1].map((priority) => {
    const region = set.machine.region(START, END, { priority });
    // Pieces of one page and of many; in the high region other ones than in the low.
    for (const [from, to] of priority === 0 ? [[0, 1], [1, 9], [9, 16]] : [[0, 4], [4, 5], [5, 16]]) {
      const rangeInRegion = range((from ?? 0) * PAGE, (to ?? 0) * PAGE);
      const fileOffset = rangeInRegion.start;
      // One policy beside another, or the pieces would be one mapping to the kernel.
      const policy = { transparentHugepages: from === 1 || from === 4 };
      region.addMapping({ rangeInRegion, mappable: set.file(priority), fileOffset, policy });
    }
    region.map();
    return region;
  }) as [RegionHandle, RegionHandle];
  await using watch = await Watch.start(set.witness, { start: START, end: END, together: true });
  set.hooks.pause = () => watch.pause();
  const before = set.held;
  set.observed.take();
  for (let generation = 1; generation <= rounds; generation++) {
    const up = generation % 2 === 0;
    watch.stamp(set.file(up ? 1 : 0), 0, START, END, generation);
    if (up) high.map();
    else high.unmap();
    watch.shown(START, END, generation);
    if (generation % PATIENCE === 0) await watch.lookTwice();
  }
  assertEquals(set.held - before, rounds);
  assertGreater(watch.changesSeen, rounds / PATIENCE - 1);
  await watch.end();
  assertEquals(set.observed.take(), []);
});

kvmTest("a guest that the hook holds sees no slot go and come back", async () => {
  const rounds = 300;
  using set = stage(2);
  const region = set.machine.backed(START, END, set.file(0));
  await using watch = await Watch.start(set.witness, { start: START, end: END, together: false });
  set.hooks.pause = () => watch.pause();
  const middle = range(4 * PAGE, 8 * PAGE);
  const before = set.held;
  for (let round = 0; round < rounds; round++) {
    const mappable = set.file(round);
    const fileOffset = middle.start;
    region.map({ writable: false });
    region.map({ writable: true });
    set.machine.regions.batch(() => {
      region.removeMappings(middle);
      region.addMapping({ rangeInRegion: middle, mappable, fileOffset, writable: false });
    });
    region.addMapping({ rangeInRegion: middle, mappable, fileOffset });
    if (round % 100 === 0) await watch.lookTwice();
  }
  await watch.end();
  assertEquals(set.held - before, 4 * rounds);
});

testUnless(noKvm ?? noHugePageFiles, "a guest sees nothing of an exchange for huge pages that fails", async () => {
  const length = tooManyHugePages() * HUGE_PAGE;
  using huge = unreservedHugePages(length);
  using machine = new Machine({ length });
  const witness = machine.attached();
  const region = machine.region(0, length);
  using file = Mappable.memfd("generation 0", HUGE_PAGE);
  stampPages(file, 0, 0, HUGE_PAGE, 0);
  region.addMapping({ rangeInRegion: range(0, HUGE_PAGE), mappable: file });
  region.map();
  // The machine holds nobody: even the vCPU that is in the guest all the time notices nothing.
  await using watch = await Watch.start(witness, { start: 0, end: HUGE_PAGE, together: true });
  for (let round = 1; round <= 300; round++) {
    assertThrows(() => region.addMapping({ rangeInRegion: region.range, mappable: huge }), MappingError, "ENOMEM");
    if (round % 100 === 0) await watch.lookTwice();
  }
  await watch.end();
});

kvmTest("another VM comes and goes without the guest noticing", async () => {
  using set = stage(1);
  set.machine.backed(START, END, set.file(0));
  const other = set.machine.witness();
  await using watch = await Watch.start(set.witness, { start: START, end: END, together: true });
  for (let round = 0; round < 200; round++) {
    const attached = set.machine.regions.addPartition(other.vm, { offset: round % 2 * 0x10_0000 });
    if (round % 50 === 0) assertEquals(other.load(START + 4 + round % 2 * 0x10_0000), START);
    attached[Symbol.dispose]();
  }
  await watch.lookTwice();
  await watch.end();
});

kvmTest("host and guest add to one word, and no addition is lost", async () => {
  using set = stage(1);
  const { memory } = set.machine.regions;
  set.machine.backed(START, END, set.file(0));
  const additions = 200_000;
  // The guest adds 1 to the low word; the high one is not reached.
  memory.writeBigUint64(START, 0n);
  const program = new LongModeCode().set("r8", START).set("r9", 1).set("r10", additions).set("r11", NOTES)
    .label("wait").load("rax", "r11", 8).compare("rax", 1).jumpIf("notEqual", "wait")
    .label("again").atomicAdd("r8", "r9").subtract("r10", 1).jumpIf("notEqual", "again")
    .out(0xf4)
    .bytes();
  set.witness.begin(program);
  await using thread = await VcpuThread.start(set.witness.vcpu);
  set.witness.setNote(NOTES, 1);
  for (let i = 0; i < additions; i++) {
    for (let seen = memory.readUint32(START);;) {
      const there = memory.compareExchangeUint32(START, seen, seen + 1);
      if (there === seen) break;
      seen = there;
    }
  }
  assertEquals((await thread.ended).end, "stop-port");
  assertEquals(memory.readBigUint64(START), BigInt(2 * additions));
});
