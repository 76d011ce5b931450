/**
 * A guest's memory with a scripted back end on it.
 *
 * @module
 */

import { GuestMemoryManager, Mappable, MemoryRange, type RegionHandle } from "membacking";
import { EventFd } from "membacking/kvm";
import { type VhostUserFrontend, VhostUserMemory, type VhostUserOptions } from "membacking/vhost-user";
import type { Script, ScriptedRegion } from "./script.ts";
import { EVERYTHING, ScriptedBackend, SOME_FEATURE } from "./scripted_backend.ts";

/** The length of its RAM, which begins at 0. */
export const RAM_LENGTH = 0x100_0000;
/** Where regions are added by tests. */
export const ADDED_AT = 0x1000_0000;
/** A vring in RAM. */
export const RING = { size: 8, descriptor: 0x1_0000, available: 0x1_1000, used: 0x1_2000 } as const;

/** Everything a test of a back end needs; disposes all of it. */
export class Rig implements AsyncDisposable {
  readonly guest: GuestMemoryManager;
  readonly backend: ScriptedBackend;
  readonly frontend: VhostUserFrontend;
  readonly memory: VhostUserMemory;
  readonly kick = new EventFd();
  readonly call = new EventFd();
  readonly #attached: Disposable;
  readonly #stack: DisposableStack;

  constructor(backend: ScriptedBackend, frontend: VhostUserFrontend, options: { x86Legacy?: boolean }) {
    this.backend = backend;
    this.frontend = frontend;
    using stack = new DisposableStack();
    stack.use(this.kick);
    stack.use(this.call);
    this.guest = stack.use(GuestMemoryManager.create({
      maxAddress: 0x1_0000_0000,
      ram: [{ ranges: [new MemoryRange(0, RAM_LENGTH)] }],
      ...options,
    }));
    stack.use(frontend);
    this.memory = stack.use(new VhostUserMemory(frontend));
    this.#attached = this.guest.regions.addDmaTarget(this.memory);
    this.#stack = stack.move();
  }

  /** Makes one; `start` sets features and starts vring 0 as well. */
  static async make(
    script: Script = EVERYTHING,
    options: VhostUserOptions & { x86Legacy?: boolean; start?: boolean } = {},
  ): Promise<Rig> {
    const { x86Legacy, start = false, ...rest } = options;
    await using stack = new AsyncDisposableStack();
    const backend = stack.use(await ScriptedBackend.start());
    const frontend = await backend.connect(script, rest);
    stack.use(frontend);
    const rig = stack.use(new Rig(backend, frontend, x86Legacy === undefined ? {} : { x86Legacy }));
    if (start) {
      await frontend.setFeatures(SOME_FEATURE);
      await rig.startVring();
    }
    stack.move();
    return rig;
  }

  /** Starts vring 0, in RAM. */
  async startVring(index = 0): Promise<void> {
    await this.frontend.startVring(index, { ...RING, kick: this.kick, call: this.call });
  }

  /** A region with memory, not mapped yet. */
  region(options: { start?: number; length?: number; file?: Mappable; fileOffset?: number } = {}): RegionHandle {
    const { start = ADDED_AT, length = 0x10_0000, fileOffset = 0 } = options;
    using file = options.file?.clone() ?? Mappable.memfd("added", length);
    const region = this.guest.regions.newRegion({
      name: `region at ${start.toString(16)}`,
      range: MemoryRange.of(start, length),
      priority: 200,
    });
    region.addMapping({ rangeInRegion: new MemoryRange(0, length), mappable: file, fileOffset });
    return region;
  }

  /** What the back end says it has, as ranges that continue each other joined. */
  async held(): Promise<string[]> {
    return rangesOf((await this.backend.state()).regions);
  }

  /** The ranges the front end says it has. */
  get told(): string[] {
    return rangesOf(
      this.memory.table.map(({ range, ...rest }) => ({ gpa: range.start, length: range.length, ...rest })),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // With the front end gone, even a back end that hangs keeps nothing.
    this.frontend[Symbol.dispose]();
    if (!this.guest.regions.disposed) this.#attached[Symbol.dispose]();
    this.#stack.dispose();
    await this.backend[Symbol.asyncDispose]();
  }
}

/** Regions as ranges, those that touch as one. */
export function rangesOf(regions: readonly ScriptedRegion[] | readonly { gpa: number; length: number }[]): string[] {
  const joined: { start: number; end: number }[] = [];
  for (const { gpa, length } of [...regions].sort((a, b) => a.gpa - b.gpa)) {
    const last = joined.at(-1);
    if (last?.end === gpa) last.end += length;
    else joined.push({ start: gpa, end: gpa + length });
  }
  return joined.map(({ start, end }) => String(new MemoryRange(start, end)));
}

/**
 * What the descriptors of this process are open on, each thing once: every thread of the runtime has one of the same
 * socket, for signals.
 */
export function descriptors(): string[] {
  return [...new Set(descriptorNames())].filter((link) => /^socket:|^\/memfd:|eventfd/.test(link)).map((link) =>
    link.replace(/\d+/, "")
  )
    .sort();
}

/** What each descriptor of this process is open on. */
export function descriptorNames(): string[] {
  const found: string[] = [];
  for (const { name } of Deno.readDirSync("/proc/self/fd")) {
    try {
      found.push(Deno.readLinkSync(`/proc/self/fd/${name}`));
    } catch {
      // The one the directory was read by.
    }
  }
  return found;
}

/** Waits until the descriptors are those there were `before`: threads that end close theirs in their own time. */
export async function descriptorsAre(before: readonly string[]): Promise<void> {
  for (let round = 0; round < 400; round++) {
    if (descriptors().join() === before.join()) return;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  throw new Error(`Descriptors are left:\n${descriptors().join("\n")}\nand there were:\n${before.join("\n")}`);
}
