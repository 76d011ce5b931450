import { assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import { Mappable, MappingError } from "membacking";
import { fdFlags } from "../support/proc.ts";
import { Rig, slots } from "./rig.ts";
import { range } from "../support/units.ts";

Deno.test("a mapping over the middle of another splits it, and both remainders keep their file offsets", () => {
  using rig = new Rig();
  const region = rig.backed(0x10000, 0x18000, { fileOffset: 0x20000 });
  const other = rig.file();
  rig.take();
  region.addMapping({ rangeInRegion: range(0x2000, 0x4000), mappable: other, fileOffset: 0x5000 });
  assertEquals(rig.memory(), [
    "0x10000-0x12000 0@0x20000 rw",
    "0x12000-0x14000 1@0x5000 rw",
    "0x14000-0x18000 0@0x24000 rw",
  ]);
  assertEquals(rig.take(), ["va.map 0x12000-0x14000 rw"]);
});

Deno.test("a mapping over the ends of two others cuts both", () => {
  using rig = new Rig();
  const region = rig.region(0x0, 0x8000);
  const [a, b, c] = [rig.file(), rig.file(), rig.file()];
  region.addMapping({ rangeInRegion: range(0x0, 0x4000), mappable: a, fileOffset: 0x1000 });
  region.addMapping({ rangeInRegion: range(0x4000, 0x8000), mappable: b, fileOffset: 0x2000 });
  region.map();
  rig.take();
  region.addMapping({ rangeInRegion: range(0x3000, 0x6000), mappable: c });
  assertEquals(rig.memory(), [
    "0x0-0x3000 0@0x1000 rw",
    "0x3000-0x6000 2@0x0 rw",
    "0x6000-0x8000 1@0x4000 rw",
  ]);
});

Deno.test("a mapping over several others and the holes between them replaces them in one mmap", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.region(0x0, 0x8000);
  for (const start of [0x1000, 0x3000, 0x5000]) {
    region.addMapping({ rangeInRegion: range(start, start + 0x1000), mappable: rig.file() });
  }
  region.map();
  rig.take();
  region.addMapping({ rangeInRegion: range(0x0, 0x8000), mappable: rig.file() });
  assertEquals(rig.take().filter((call) => call.startsWith("va.")), ["va.map 0x0-0x8000 rw"]);
  for (let gpa = 0; gpa < 0x8000; gpa += 0x1000) assertEquals(target.accessAt(gpa)?.writable, true);
});

Deno.test("removing the middle of a mapping leaves both remainders with their file offsets", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.backed(0x0, 0x8000, { fileOffset: 0x10000 });
  rig.take();
  region.removeMappings(range(0x3000, 0x4000));
  assertEquals(rig.memory(), ["0x0-0x3000 0@0x10000 rw", "0x4000-0x8000 0@0x14000 rw"]);
  assertEquals(slots(target), ["0x0-0x3000 rw", "0x4000-0x8000 rw"]);
});

Deno.test("removing what is not mapped is no error and touches nothing", () => {
  using rig = new Rig();
  rig.partition();
  const region = rig.backed(0x0, 0x8000);
  region.removeMappings(range(0x2000, 0x4000));
  rig.take();
  region.removeMappings(range(0x2000, 0x4000));
  assertEquals(rig.take(), []);
});

Deno.test("splits survive unmapping and mapping the region", () => {
  using rig = new Rig();
  const region = rig.backed(0x0, 0x8000);
  region.addMapping({ rangeInRegion: range(0x2000, 0x3000), mappable: rig.file(), fileOffset: 0x7000 });
  region.removeMappings(range(0x5000, 0x6000));
  const before = rig.memory();
  region.unmap();
  region.map();
  assertEquals(rig.memory(), before);
});

Deno.test("adding the very same mapping again touches nothing", () => {
  using rig = new Rig();
  rig.partition();
  rig.dmaTarget();
  const file = rig.file();
  const region = rig.backed(0x0, 0x4000, { file });
  rig.take();
  region.addMapping({ rangeInRegion: range(0x0, 0x4000), mappable: file });
  region.addMapping({ rangeInRegion: range(0x1000, 0x2000), mappable: file, fileOffset: 0x1000 });
  assertEquals(rig.take(), []);
});

Deno.test("a region keeps its own clone: the caller may close the mappable after addMapping", () => {
  using rig = new Rig();
  const region = rig.region(0x0, 0x4000);
  {
    using file = Mappable.memfd("short-lived", 0x4000);
    region.addMapping({ rangeInRegion: range(0, 0x4000), mappable: file });
  }
  region.map();
  assertStrictEquals(rig.va.at(0x1000)?.mappable?.size, 0x4000);
});

Deno.test("a file is closed when its last mapping goes, however it was cut", () => {
  using rig = new Rig();
  const region = rig.region(0x0, 0x4000);
  using file = Mappable.memfd("counted", 0x4000);
  region.addMapping({ rangeInRegion: range(0, 0x4000), mappable: file });
  region.map();
  const held = rig.va.at(0)!.mappable!;
  region.removeMappings(range(0x1000, 0x2000));
  region.addMapping({ rangeInRegion: range(0x3000, 0x4000), mappable: rig.file() });
  assertStrictEquals(held.fd, file.fd);
  region.removeMappings(range(0x0, 0x1000));
  assertStrictEquals(held.fd, file.fd);
  region.removeMappings(range(0x2000, 0x3000));
  assertThrows(() => held.fd, "the last piece is gone and the handle is still open");
  assertStrictEquals(file.size, 0x4000);
});

/** Whether the descriptor of `file` is still open once its own handle is gone: somebody kept a clone. */
function isKept(file: Mappable): boolean {
  const { fd } = file;
  file[Symbol.dispose]();
  return fdFlags(fd) !== undefined;
}

Deno.test("a request that fails keeps no file open", () => {
  using rig = new Rig();
  const region = rig.backed(0x0, 0x4000);
  const file = Mappable.memfd("refused", 0x1000);
  rig.faults.failAfter(0);
  assertThrows(() => region.addMapping({ rangeInRegion: range(0, 0x1000), mappable: file }), MappingError);
  assertStrictEquals(isKept(file), false);
});

Deno.test("a batch that fails keeps no file open, whether it throws, cannot be carried out or is a part of another", () => {
  using rig = new Rig();
  const region = rig.region(0x0, 0x4000);
  region.map();
  const add = () => {
    const file = Mappable.memfd("refused", 0x1000);
    region.addMapping({ rangeInRegion: range(0, 0x1000), mappable: file });
    return file;
  };
  const files: Mappable[] = [];
  const refuse = () => {
    files.push(add(), add());
    throw new Error("changed my mind");
  };
  assertThrows(() => rig.manager.batch(refuse), Error, "changed my mind");
  rig.faults.failAfter(0);
  assertThrows(() => rig.manager.batch(() => files.push(add(), add())), MappingError);
  const kept = rig.manager.batch(() => {
    const first = add();
    assertThrows(() => rig.manager.batch(refuse), Error, "changed my mind");
    return first;
  });
  assertEquals(files.map(isKept), files.map(() => false));
  assertStrictEquals(isKept(kept), true);
});

Deno.test("a file that comes and goes within one batch is closed with it", () => {
  using rig = new Rig();
  const region = rig.region(0x0, 0x4000);
  region.map();
  const file = Mappable.memfd("brief", 0x4000);
  rig.manager.batch(() => {
    region.addMapping({ rangeInRegion: range(0, 0x4000), mappable: file });
    region.removeMappings(range(0x1000, 0x2000));
    region.removeMappings(range(0, 0x4000));
  });
  assertStrictEquals(isKept(file), false);
});

Deno.test("a mapping may end at the end of the file rounded up to a page", () => {
  using rig = new Rig();
  const path = Deno.makeTempFileSync();
  try {
    Deno.writeFileSync(path, new Uint8Array(0x1001));
    using file = Mappable.open(path, { write: true });
    const region = rig.region(0x0, 0x4000);
    region.addMapping({ rangeInRegion: range(0x0, 0x2000), mappable: file });
    assertThrows(() => region.addMapping({ rangeInRegion: range(0x0, 0x3000), mappable: file }), MappingError);
  } finally {
    Deno.removeSync(path);
  }
});

Deno.test("a file that may not be written is mapped when the mapping is read-only", () => {
  using rig = new Rig();
  using readOnly = Mappable.open(`/proc/self/fd/${rig.file().fd}`);
  const region = rig.region(0x0, 0x4000);
  region.addMapping({ rangeInRegion: range(0x0, 0x4000), mappable: readOnly, writable: false });
  region.map();
  assertStrictEquals(rig.va.at(0)?.writable, false);
});

Deno.test("the count of host mappings comes back to what it was, over and over", () => {
  using rig = new Rig({ overlap: "any" });
  const [file, other] = [rig.file(), rig.file()];
  // Both show one file read-only, one because of its region and one because of its mapping: one host mapping.
  const large = rig.region(0x0, 0x4000, { priority: 0 });
  large.addMapping({ rangeInRegion: range(0x0, 0x4000), mappable: file, writable: true });
  large.map({ writable: false });
  const small = rig.region(0x1000, 0x2000, { priority: 1 });
  small.addMapping({ rangeInRegion: range(0x0, 0x1000), mappable: file, fileOffset: 0x1000, writable: false });
  small.map();
  const counts = new Set<number>();
  for (let i = 0; i < 5; i++) {
    small.addMapping({ rangeInRegion: range(0x0, 0x1000), mappable: other, writable: false });
    small.unmap();
    small.addMapping({ rangeInRegion: range(0x0, 0x1000), mappable: file, fileOffset: 0x1000, writable: false });
    small.map();
    counts.add(rig.manager.inspect().hostMappings);
  }
  assertEquals([...counts], [3]);
});

Deno.test("the policy of a mapping goes along to host memory, through cuts and remapping", () => {
  using rig = new Rig();
  const region = rig.region(0x0, 0x4000);
  const policy = { hostNumaNode: 0, transparentHugepages: true };
  region.addMapping({ rangeInRegion: range(0x0, 0x4000), mappable: rig.file(), policy });
  region.map();
  region.removeMappings(range(0x1000, 0x2000));
  region.unmap();
  region.map({ writable: false });
  assertEquals([rig.va.at(0)?.policy, rig.va.at(0x3000)?.policy], [policy, policy]);
});
