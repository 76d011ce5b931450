// A request may be interrupted by an exception from where none is expected: here, by the end of the stack, at every depth.

import { assert, assertEquals, assertGreater, assertStrictEquals } from "@std/assert";
import { Mappable, type MemoryRange, type RegionHandle, RegionManager, VaMapper } from "membacking";
import { Faults, RecordingDmaTarget, RecordingPartition } from "membacking/testing";
import { openFds } from "../support/proc.ts";
import { FRAME, near } from "../support/stack.ts";
import { PAGE, range } from "../support/units.ts";

/** Calls `act` so many frames further down. */
function further(frames: number, act: () => void): void {
  if (frames > 0) further(frames - 1, act);
  else act();
}

/**
 * How far down targets go before they do something: further once a slot has been given, and further still after that. So
 * the stack ends late in a request, or while it is undone, with most of it done.
 */
class Stairs {
  frames = 0;

  down(act: () => void, isLate: boolean): undefined {
    if (isLate) this.frames += 25;
    further(this.frames, act);
  }
}

/** A partition that takes more of the stack the later it is called. */
class DeepPartition extends RecordingPartition {
  readonly stairs = new Stairs();

  override mapRange(...args: Parameters<RecordingPartition["mapRange"]>): void {
    this.stairs.down(() => super.mapRange(...args), true);
  }

  override unmapRange(...args: Parameters<RecordingPartition["unmapRange"]>): void {
    this.stairs.down(() => super.unmapRange(...args), false);
  }
}

/** A DMA target that does so on the same stairs. */
class DeepDmaTarget extends RecordingDmaTarget<Mappable> {
  readonly stairs: Stairs;

  constructor(stairs: Stairs, ...options: ConstructorParameters<typeof RecordingDmaTarget<Mappable>>) {
    super(...options);
    this.stairs = stairs;
  }

  override mapDma(...args: Parameters<RecordingDmaTarget<Mappable>["mapDma"]>): undefined {
    return this.stairs.down(() => super.mapDma(...args), true);
  }

  override unmapDma(...args: Parameters<RecordingDmaTarget<Mappable>["unmapDma"]>): undefined {
    return this.stairs.down(() => super.unmapDma(...args), false);
  }
}

/** Real host memory with files, private and copy-on-write memory, a partition and a DMA target. */
class Scene implements Disposable {
  readonly #stack = new DisposableStack();
  readonly faults = new Faults();
  readonly vm = new DeepPartition({ faults: this.faults });
  readonly iommu = new DeepDmaTarget(this.vm.stairs, { faults: this.faults });
  readonly manager: RegionManager;
  readonly file: Mappable;
  readonly own: RegionHandle;
  readonly copy: RegionHandle;
  readonly shared: RegionHandle;
  held = 0;

  constructor() {
    const va = this.#stack.use(VaMapper.reserve(0x10_0000));
    this.manager = this.#stack.use(
      new RegionManager(va, {
        overlap: "any",
        quiesce: () => {
          this.held++;
          return { [Symbol.dispose]: () => void this.held-- };
        },
      }),
    );
    this.file = this.#stack.use(Mappable.memfd("file", 16 * PAGE));
    for (let page = 0; page < 16; page++) this.file.write(page * PAGE, new Uint8Array([100 + page]));
    this.own = this.region(0, 8, 1);
    this.own.addMapping({ rangeInRegion: range(0, 4 * PAGE), mappable: "private" });
    this.own.addMapping({ rangeInRegion: range(4 * PAGE, 6 * PAGE), mappable: this.file, writable: false });
    this.copy = this.region(16, 24, 1);
    this.copy.addMapping({ rangeInRegion: range(0, 8 * PAGE), mappable: this.file, copyOnWrite: true });
    this.shared = this.region(32, 40, 1);
    this.shared.addMapping({ rangeInRegion: range(0, 8 * PAGE), mappable: this.file });
    this.manager.addPartition(this.vm);
    this.manager.addDmaTarget(this.iommu);
    for (const region of [this.own, this.copy, this.shared]) region.map();
    for (let page = 0; page < 4; page++) this.manager.memory.writeUint8(page * PAGE, page + 1);
    this.manager.memory.writeUint8(17 * PAGE, 99);
  }

  region(from: number, to: number, priority: number): RegionHandle {
    return this.manager.newRegion({ name: `${from}-${to}`, range: range(from * PAGE, to * PAGE), priority });
  }

  /** What everybody has. A page that should be there and is not would end the process. */
  look(): unknown {
    const { memory } = this.manager;
    const pages = Array.from(
      { length: 48 },
      (_, page) => memory.isMapped(page * PAGE, PAGE) ? memory.readUint8(page * PAGE) : null,
    );
    const { hostMappings: _, ...map } = this.manager.inspect();
    const text = ({ range }: { readonly range: MemoryRange }) => `${range}`;
    return {
      pages,
      slots: this.vm.ranges.map((slot) => `${slot.range} ${slot.access.writable}`),
      dma: this.iommu.mappings.map((mapping) => `${text(mapping)} ${mapping.writable}`),
      map: { ...map, base: 0 },
      held: this.held,
    };
  }

  [Symbol.dispose](): void {
    this.#stack[Symbol.dispose]();
  }
}

/** The requests, each on a scene of its own. */
const REQUESTS: Readonly<Record<string, (scene: Scene) => () => void>> = {
  "a region of private memory is unmapped": (scene) => () => scene.own.unmap(),
  "a region of private memory is mapped": (scene) => {
    scene.own.unmap();
    return () => scene.own.map();
  },
  "memory is made read-only": (scene) => () => scene.copy.map({ writable: false }),
  "a mapping is replaced": (scene) => {
    const other = scene.file;
    return () =>
      scene.shared.addMapping({ rangeInRegion: range(PAGE, 2 * PAGE), mappable: other, fileOffset: 9 * PAGE });
  },
  "copy-on-write memory is removed": (scene) => () => scene.copy.removeMappings(range(0, 4 * PAGE)),
  "a region is removed": (scene) => () => scene.own[Symbol.dispose](),
  "several requests are one": (scene) => () =>
    scene.manager.batch(() => {
      scene.own.unmap();
      scene.shared.map({ writable: false });
      scene.copy.removeMappings(range(0, PAGE));
    }),
  "a partition is attached": (scene) => () => void scene.manager.addPartition(new RecordingPartition()),
};

/** How many frames are left: fewer than a request needs, all along it, and some in which it fits. */
const DEPTHS = [
  ...Array.from({ length: 48 }, (_, i) => i),
  ...Array.from({ length: 40 }, (_, i) => 48 + 3 * i),
  ...[200, 300, 400, 600, 800, 1000, 1500, 2000],
];

/** What everybody has before a request, or after one that is carried out. */
function outcome(prepare: (scene: Scene) => () => void, done: boolean): unknown {
  using scene = new Scene();
  const request = prepare(scene);
  if (done) request();
  return scene.look();
}

for (const [name, prepare] of Object.entries(REQUESTS)) {
  for (const undo of [false, true]) {
    Deno.test(`the stack ends while ${name}${undo ? ", and while that is undone" : ""}: all of it has happened or nothing`, () => {
      const fds = openFds();
      let interrupted = 0;
      let whole = 0;
      const before = outcome(prepare, false);
      const after = outcome(prepare, true);
      for (const depth of DEPTHS) {
        using scene = new Scene();
        const request = prepare(scene);
        // The last call of the request fails, so that all of it is undone.
        if (undo) scene.faults.failAfter(0, { on: ({ method }) => method === "mapDma" || method === "mapRange" });
        let error: unknown = null;
        scene.vm.stairs.frames = 0;
        try {
          near(FRAME * depth, request);
        } catch (thrown) {
          error = thrown;
        }
        scene.faults.reset();
        scene.vm.stairs.frames = 0;
        if (error instanceof RangeError) interrupted++;
        const now = scene.look();
        if (error === null) {
          whole++;
          assertEquals(now, after, `at depth ${depth}`);
        } else if (JSON.stringify(now) !== JSON.stringify(after)) {
          assertEquals(now, before, `at depth ${depth}: ${error}`);
        }
        assertStrictEquals(scene.held, 0);
      }
      assertGreater(interrupted, 5, "the stack never ended");
      assert(undo || whole > 0, "the request never got through");
      assertEquals(openFds(), fds);
    });
  }
}
