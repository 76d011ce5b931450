/**
 * Every function, constructor, method and property that the package exports, called with anything at all.
 *
 * @module
 */

import * as membacking from "membacking";
import * as testing from "membacking/testing";
import { anyOptions, anything } from "../catalogue.ts";
import type { Family, Notes } from "../family.ts";
import type { Random } from "../random.ts";
import { baseline, leakedAtLast } from "../resources.ts";
import { Known, Stage } from "../stage.ts";

type Callable = (...args: unknown[]) => unknown;
type Class = new (...args: unknown[]) => object;

/** What takes descriptors that are not ours: those of the runtime. */
const NOT_FOR_CALLERS: ReadonlySet<string> = new Set([
  ...["Mappable.fromFd", "ProcessClient.connect"],
]);
/** They draw what `inspect()` gave; of anything else they would draw as much as it claims to be. */
const DRAWING: ReadonlySet<string> = new Set(["drawMemoryMap", "drawMemoryMapSvg"]);
const CONSTRUCTORS: readonly string[] = [
  ...["MemoryRange", "RegionManager", "RecordingPartition", "RecordingDmaTarget", "RecordingVa", "Faults"],
];

function exported(module: object): [string, unknown][] {
  return Object.entries(module);
}

/** The functions and static methods there are, and the constructors of classes that callers make. */
function functions(): [string, Callable][] {
  const all: [string, Callable][] = [];
  for (const [name, value] of [...exported(membacking), ...exported(testing)]) {
    if (typeof value !== "function") continue;
    if (DRAWING.has(name)) {
      all.push([name, (stage, options) => (value as Callable)((stage as Stage).manager.inspect(), options)]);
    } else if (!/^[A-Z]/.test(name)) all.push([name, value as Callable]);
    if (CONSTRUCTORS.includes(name)) all.push([`new ${name}`, (...args) => new (value as Class)(...args)]);
    for (const method of Object.getOwnPropertyNames(value)) {
      const found: unknown = Object.getOwnPropertyDescriptor(value, method)?.value;
      if (/^[A-Z]/.test(name) && typeof found === "function" && method !== "prototype") {
        all.push([`${name}.${method}`, (...args) => (found as Callable).apply(value, args)]);
      }
    }
  }
  return all.filter(([name]) => !NOT_FOR_CALLERS.has(name));
}

/** The methods of an object, its class's and those above it. */
function methodsOf(object: object): string[] {
  const names: string[] = [];
  for (let at = Object.getPrototypeOf(object); at !== null && at !== Object.prototype; at = Object.getPrototypeOf(at)) {
    names.push(...Object.getOwnPropertyNames(at).filter((name) => name !== "constructor"));
  }
  return names.filter((name) => !NOT_FOR_CALLERS.has(`${object.constructor.name}.${name}`));
}

/** Calls a method of an object, reads a property, or sets one. */
function touch(object: object, random: Random, args: () => unknown[], stage: Stage, notes: Notes): void {
  const names = [...methodsOf(object), ...Object.keys(object)];
  if (names.length === 0) return;
  const name = random.of(names);
  const what = `${object.constructor?.name}.${name}`;
  if (random.oneIn(12)) {
    notes.try(`${what} =`, () => Reflect.set(object, name, anything(random, stage.live)));
    return;
  }
  const result = notes.try(what, () => {
    const value: unknown = Reflect.get(object, name);
    return typeof value === "function" ? value.apply(object, args()) : value;
  });
  keep(result, stage);
}

function keep(result: unknown, stage: Stage): void {
  if (result instanceof Promise) result.then((value) => stage.keep(value), () => {});
  else stage.keep(result);
}

/** Calls anything of `more` and of the package, `count` times. */
export async function callAnything(
  random: Random,
  notes: Notes,
  stage: Stage,
  count: number,
  more: readonly [string, Callable][] = [],
): Promise<void> {
  const all = [...functions(), ...more];
  for (let i = 0; i < count; i++) {
    const args = () =>
      Array.from(
        { length: random.below(5) },
        () => random.oneIn(3) ? anyOptions(random, stage.live) : anything(random, stage.live),
      );
    if (random.oneIn(3)) {
      const [name, call] = random.of(all);
      const given = DRAWING.has(name) ? [stage, anyOptions(random, stage.live)] : args();
      keep(notes.try(name, () => call(...given)), stage);
    } else {
      touch(random.of(stage.live), random, args, stage, notes);
    }
    if (i % 50 === 0) await new Promise((resolve) => setTimeout(resolve, 0));
  }
}

const family: Family = {
  name: "values",
  async attack(random, notes) {
    new Stage()[Symbol.dispose](); // what is made once per thread is made now
    const before = await baseline();
    let all = false;
    {
      using known = new Known();
      const stage = new Stage();
      const { port1, port2 } = new MessageChannel();
      stage.manager.serve(port1);
      const client = await membacking.RegionManagerClient.connect(port2);
      stage.live.push(known.region.range, client, client.memory);
      await callAnything(random, notes, stage, 600);
      known.check(notes);
      all = stage.dispose(notes);
      known.check(notes);
    }
    if (!all) return;
    for (const left of await leakedAtLast(before)) notes.broken(left);
  },
};

export default family;
