/**
 * A region manager over real host memory and real virtual machines, driven by the requests of the model tests, and the
 * comparison of every page as the guests, the host and the kernel see it with what the naive model says.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { GuestMemoryError, Mappable, MappingError, type RegionHandle, RegionManager, VaMapper } from "membacking";
import { RecordingDmaTarget } from "membacking/testing";
import { cString, libc } from "../../ffi/os/libc.ts";
import { O_CLOEXEC, O_RDONLY } from "../../ffi/os/mman.ts";
import { unwrap } from "../../ffi/os/os_error.ts";
import { type Backing, type ErrorName, Model, type Request } from "../model/model.ts";
import { FILES, PAGES, resolve, type SequenceStep } from "../model/sequences.ts";
import { Abandoned, pageRange } from "../model/world.ts";
import { mappings, status, type Vma } from "../support/proc.ts";
import { stamp } from "./machine.ts";
import { type Fate, type Sight, Witness } from "./witness.ts";
import { PAGE } from "../support/units.ts";

const ALL_PAGES: readonly number[] = Array.from({ length: PAGES }, (_, page) => page);

/** Two words per page are looked at: one that guests write, and one that the host does. */
const GUESTS = 0;
const HOSTS = 8;

/** What outlives a sequence because it takes long to make: virtual machines, and files. */
export class Stock implements Disposable {
  /** The files of the model; one of them can be read only. */
  readonly files: readonly Mappable[];
  /** The files again, all of them to be written. */
  readonly #own: readonly Mappable[];
  readonly #memory: number;
  readonly #idle: Witness[] = [];
  #made = 0;

  constructor() {
    this.#own = FILES.map(({ pages }, i) => Mappable.memfd(`file-${i}`, pages * PAGE));
    this.files = FILES.map(({ writable }, i) => {
      const own = this.#own[i]!;
      return writable ? own.clone() : Mappable.open(`/proc/self/fd/${own.fd}`);
    });
    const { sys, errno } = libc();
    this.#memory = unwrap(sys.open(cString("/proc/self/mem"), O_RDONLY | O_CLOEXEC, 0), errno[0], "open");
  }

  /** A virtual machine without memory of ours. Every second one keeps what it has mapped when a slot goes. */
  take(): Witness {
    const made = this.#made;
    return this.#idle.shift() ??
      new Witness({ name: `vm-${this.#made++}`, zapAllOnSlotDelete: made % 2 === 0 });
  }

  /** Takes one back, which must have nothing left. */
  giveBack(witness: Witness): void {
    assertEquals(witness.slots, [], `slots of ${witness.vm.name} after its partition is gone`);
    this.#idle.push(witness);
  }

  /** Sets a word of a file. */
  write(file: number, at: number, word: number): void {
    this.#own[file]!.write(at, new Uint8Array(new Uint32Array([word]).buffer));
  }

  /** A word of a file. */
  read(file: number, at: number): number {
    const word = new Uint32Array(1);
    this.#own[file]!.read(at, new Uint8Array(word.buffer));
    return word[0]!;
  }

  /** A word of this process's memory, as a debugger would read it. */
  peek(address: number): number {
    const word = new Uint32Array(1);
    const { sys, errno } = libc();
    const count = sys.pread(this.#memory, new Uint8Array(word.buffer), 4n, BigInt(address));
    unwrap(count, errno[0], "pread", () => `/proc/self/mem at 0x${address.toString(16)}`);
    return word[0]!;
  }

  [Symbol.dispose](): void {
    for (const witness of this.#idle) witness[Symbol.dispose]();
    for (const file of [...this.files, ...this.#own]) file[Symbol.dispose]();
    libc().sys.close(this.#memory);
  }
}

interface Attached {
  readonly witness: Witness;
  readonly handle: Disposable;
  readonly offset: number;
}

/** One sequence's region manager and its guests. */
class VmWorld implements Disposable {
  readonly #stock: Stock;
  readonly #va: VaMapper = VaMapper.reserve(PAGES * PAGE);
  readonly #manager: RegionManager;
  readonly #regions: RegionHandle[] = [];
  readonly #partitions: Attached[] = [];
  readonly #dmaTargets: Disposable[] = [];
  /** What guests and host have written into each page; as it was made where nothing is said. */
  readonly #words = new Map<string, number>();
  /** The pages of copy-on-write memory that are copies by now. */
  readonly #copied = new Set<string>();
  readonly #lockedBefore = status("VmLck");
  #token = 0;

  constructor(stock: Stock, overlap: "nested" | "any") {
    this.#stock = stock;
    this.#manager = new RegionManager(this.#va, { overlap });
    FILES.forEach(({ pages }, file) => {
      for (let page = 0; page < pages; page++) {
        for (const at of [GUESTS, HOSTS]) stock.write(file, page * PAGE + at, stamp(file + 1, page) + at);
      }
    });
  }

  /** Makes the request. Throws what the manager throws. */
  run(request: Request): void {
    const lengths = [this.#regions.length, this.#partitions.length, this.#dmaTargets.length] as const;
    try {
      this.#run(request);
    } catch (error) {
      this.#regions.length = lengths[0];
      for (const { witness } of this.#partitions.splice(lengths[1])) this.#stock.giveBack(witness);
      this.#dmaTargets.length = lengths[2];
      throw error;
    }
  }

  #run(request: Request): void {
    const manager = this.#manager;
    switch (request.kind) {
      case "newRegion": {
        const { start, pages, priority, type, holes } = request;
        const name = `region-${this.#regions.length}`;
        this.#regions.push(manager.newRegion({ name, range: pageRange(start, pages), priority, type, holes }));
        return;
      }
      case "map": {
        const { writable, executable, prefetch } = request;
        return this.#regions[request.region]!.map({ writable, executable, prefetch });
      }
      case "unmap":
        return this.#regions[request.region]!.unmap();
      case "addMapping": {
        const { region, at, pages, file, filePage, writable, copyOnWrite = false } = request;
        return this.#regions[region]!.addMapping({
          rangeInRegion: pageRange(at, pages),
          mappable: file === "private" ? file : this.#stock.files[file]!,
          ...(file !== "private" && { fileOffset: filePage * PAGE }),
          writable,
          copyOnWrite: file !== "private" && copyOnWrite,
        });
      }
      case "removeMappings":
        return this.#regions[request.region]!.removeMappings(pageRange(request.at, request.pages));
      case "disposeRegion":
        return this.#regions[request.region]![Symbol.dispose]();
      case "addPartition": {
        const witness = this.#stock.take();
        const offset = request.offset * PAGE;
        // In the list before it is attached: whatever happens then, it is given back.
        const handle = { [Symbol.dispose]: () => attached[Symbol.dispose]() };
        this.#partitions.push({ witness, offset, handle });
        const attached = manager.addPartition(witness.vm, { offset, pin: request.pin });
        return;
      }
      case "detachPartition":
        return this.#partitions[request.partition]!.handle[Symbol.dispose]();
      case "addDmaTarget":
        this.#dmaTargets.push(manager.addDmaTarget(new RecordingDmaTarget<Mappable>({})));
        return;
      case "detachDmaTarget":
        return this.#dmaTargets[request.target]![Symbol.dispose]();
      case "batch":
        return manager.batch(() => {
          for (const inner of request.requests) this.#run(inner);
          if (request.abandon) throw new Abandoned();
        });
    }
  }

  /** Throws unless guests, host and kernel see every page as the model does. Writes wherever the model allows it. */
  compare(model: Model): void {
    this.#compareKernel(model);
    this.#compareHost(model);
    for (const [i, { witness, offset }] of this.#partitions.entries()) {
      this.#compareGuest(model, witness, offset, !model.state.partitions[i]!.detached);
    }
  }

  /** The kernel: what is mapped where, and how much of it is locked. */
  #compareKernel(model: Model): void {
    const { base, length } = this.#va;
    const vmas = mappings(base, base + length);
    const inKernel = ALL_PAGES.map((page) => {
      const address = base + page * PAGE;
      const vma = vmas.find(({ start, end }) => start <= address && address < end);
      return vma === undefined ? "nothing" : vmaText(vma, address);
    });
    const inModel = ALL_PAGES.map((page) => {
      const backing = model.backing(page);
      if (backing === null) return "---p";
      const access = backing.writable ? "rw-" : "r--";
      return backing.file === "private"
        ? `${access}p`
        : `${access}${
          backing.copyOnWrite ? "p" : "s"
        } /memfd:file-${backing.file} (deleted) at page ${backing.filePage}`;
    });
    assertEquals(inKernel, inModel, "the kernel's mappings");

    const isPinned = model.state.partitions.some(({ pin, detached }) => pin && !detached);
    const backed = ALL_PAGES.filter((page) => model.backing(page) !== null).length;
    assertEquals(status("VmLck") - this.#lockedBefore, isPinned ? backed * PAGE / 1024 : 0, "locked memory");
  }

  /** The host: through the manager, through the file, and as a debugger. */
  #compareHost(model: Model): void {
    const { memory } = this.#manager;
    for (const page of ALL_PAGES) {
      const gpa = page * PAGE;
      const backing = model.backing(page);
      if (backing === null) {
        assertEquals(kindOf(() => memory.readUint32(gpa)), "not-mapped", `reading page ${page}`);
        assertEquals(kindOf(() => memory.writeUint32(gpa, 0)), "not-mapped", `writing page ${page}`);
        continue;
      }
      const token = ++this.#token;
      const written = kindOf(() => memory.writeUint32(gpa + HOSTS, token));
      assertEquals(written, backing.writable ? "done" : "read-only", `writing page ${page}`);
      if (backing.writable) this.#write(backing, page, HOSTS, token);
      for (const at of [GUESTS, HOSTS]) {
        const word = this.#word(backing, page, at);
        assertEquals(memory.readUint32(gpa + at), word, `page ${page} as the host reads it`);
        assertEquals(this.#stock.peek(this.#va.base + gpa + at), word, `page ${page} as a debugger reads it`);
        if (backing.file === "private" || backing.copyOnWrite) continue;
        assertEquals(this.#stock.read(backing.file, backing.filePage * PAGE + at), word, `page ${page} in its file`);
      }
    }
  }

  /** A guest: what it reads, and what becomes of what it writes. */
  #compareGuest(model: Model, witness: Witness, offset: number, isAttached: boolean): void {
    const name = `${witness.vm.name} at 0x${offset.toString(16)}`;
    const stores = ALL_PAGES.map((page) => ({ gpa: page * PAGE + offset, word: ++this.#token }));
    const fates = ALL_PAGES.map((page): Fate => {
      const access = isAttached ? model.access(page) : null;
      // Without a slot that can be written, KVM does not even look for the memory.
      if (access === null || !access.writable) return "mmio";
      return model.backing(page)?.writable ? "stored" : "fault";
    });
    assertEquals(witness.write(stores), fates, `what becomes of what ${name} writes`);
    ALL_PAGES.forEach((page) => {
      const backing = model.backing(page);
      if (backing !== null && fates[page] === "stored") {
        this.#write(backing, page, GUESTS, stores[page]!.word);
      }
    });
    const sights = ALL_PAGES.map((page): Sight => {
      if (!isAttached || model.access(page) === null) return "mmio";
      const backing = model.backing(page);
      return backing === null ? "fault" : this.#word(backing, page, GUESTS);
    });
    assertEquals(witness.look(stores.map(({ gpa }) => gpa)), sights, `what ${name} reads`);
  }

  #word(backing: Backing, page: number, at: number): number {
    const { file, filePage } = backing;
    if (backing.copyOnWrite && !this.#copied.has(keyOf(backing, page, 0))) {
      return this.#word({ ...backing, copyOnWrite: false }, page, at);
    }
    return this.#words.get(keyOf(backing, page, at)) ?? (file === "private" ? 0 : stamp(file + 1, filePage) + at);
  }

  /** A page of copy-on-write memory is a copy from its first write on. */
  #write(backing: Backing, page: number, at: number, word: number): void {
    if (backing.copyOnWrite && !this.#copied.has(keyOf(backing, page, 0))) {
      for (const other of [GUESTS, HOSTS]) {
        this.#words.set(keyOf(backing, page, other), this.#word(backing, page, other));
      }
      this.#copied.add(keyOf(backing, page, 0));
    }
    this.#words.set(keyOf(backing, page, at), word);
  }

  [Symbol.dispose](): void {
    this.#manager[Symbol.dispose]();
    this.#va[Symbol.dispose]();
    for (const { witness } of this.#partitions) this.#stock.giveBack(witness);
  }
}

/** Runs one sequence, without its injected faults. Throws at the first difference. */
export function runOnVms(steps: readonly SequenceStep[], overlap: "nested" | "any", stock: Stock): void {
  const model = new Model(PAGES, overlap, FILES);
  using world = new VmWorld(stock, overlap);
  for (const { request: unresolved, wild } of steps) {
    const { regions, partitions, dmaTargets } = model.state;
    const request = resolve(unresolved, wild, {
      regions: regions.map(({ start, pages, disposed }) => ({ start, pages, disposed })),
      partitions: partitions.length,
      targets: dmaTargets.length,
    });
    if (request === null) continue;
    const expected = model.apply(request);
    const error = errorOf(() => world.run(request));
    const isRight = error === null ? expected.size === 0 : expected.has(error.name as ErrorName);
    assert(isRight, `${Deno.inspect(error)} for ${JSON.stringify(request)}, expected ${[...expected].join(" or ")}`);
    assert(!(error instanceof MappingError) || error.cause === undefined, `a target failed: ${Deno.inspect(error)}`);
    world.compare(model);
  }
}

function vmaText({ start, access, offset, file }: Vma, address: number): string {
  return file === "" ? access : `${access} ${file} at page ${(offset + address - start) / PAGE}`;
}

/** Which memory a page is: that of a file is the same wherever it shows. */
function keyOf({ file, filePage, copyOnWrite, serial }: Backing, page: number, at: number): string {
  return file === "private" || copyOnWrite
    ? `private ${serial} page ${page} at ${at}`
    : `file ${file} page ${filePage} at ${at}`;
}

function kindOf(access: () => unknown): string {
  const error = errorOf(access);
  return error === null ? "done" : error instanceof GuestMemoryError ? error.kind : String(error);
}

function errorOf(action: () => unknown): Error | null {
  try {
    action();
    return null;
  } catch (error) {
    return error instanceof Error ? error : new Error(String(error));
  }
}
