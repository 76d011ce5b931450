import { assert, assertEquals } from "@std/assert";
import { type Logger, Mappable, MemoryRange, RegionManager, VaMapper } from "membacking";

// deno-lint-ignore no-explicit-any
type GenericFunction = (...args: any[]) => any;

/** Has the method signatures of the logger in `@std/log`, which takes a value or a function that makes one. */
class OverloadedLogger {
  readonly lines: string[] = [];

  debug<T>(msg: () => T, ...args: unknown[]): T | undefined;
  debug<T>(msg: T extends GenericFunction ? never : T, ...args: unknown[]): T;
  debug<T>(msg: T | (() => T)): T | undefined {
    return this.#log(msg);
  }

  info<T>(msg: () => T, ...args: unknown[]): T | undefined;
  info<T>(msg: T extends GenericFunction ? never : T, ...args: unknown[]): T;
  info<T>(msg: T | (() => T)): T | undefined {
    return this.#log(msg);
  }

  warn<T>(msg: () => T, ...args: unknown[]): T | undefined;
  warn<T>(msg: T extends GenericFunction ? never : T, ...args: unknown[]): T;
  warn<T>(msg: T | (() => T)): T | undefined {
    return this.#log(msg);
  }

  error<T>(msg: () => T, ...args: unknown[]): T | undefined;
  error<T>(msg: T extends GenericFunction ? never : T, ...args: unknown[]): T;
  error<T>(msg: T | (() => T)): T | undefined {
    return this.#log(msg);
  }

  #log<T>(msg: unknown): T {
    const value = typeof msg === "function" ? msg() : msg;
    this.lines.push(String(value));
    return value;
  }
}

Deno.test("Logger is what console is", () => {
  const logger: Logger = console;
  assert(logger === console);
});

Deno.test("RegionManager logs to a logger with the overloads of @std/log", () => {
  const logger = new OverloadedLogger();
  using va = VaMapper.reserve(0x4000);
  using regions = new RegionManager(va, { logger });
  using file = Mappable.memfd("ram", 0x4000);
  const ram = regions.newRegion({ name: "ram", range: new MemoryRange(0, 0x4000), priority: 0 });
  ram.addMapping({ rangeInRegion: new MemoryRange(0, 0x4000), mappable: file });
  ram.map();
  assert(logger.lines.some((line) => line.startsWith("map")), logger.lines.join("\n"));
});

Deno.test("a region that is mapped and shows nowhere is a warning that names who hides it", () => {
  const logger = new OverloadedLogger();
  using va = VaMapper.reserve(0x8000);
  using regions = new RegionManager(va, { logger });
  regions.newRegion({ name: "ram", range: new MemoryRange(0, 0x4000), priority: 255 }).map();
  const rom = regions.newRegion({ name: "rom", range: new MemoryRange(0x1000, 0x2000), priority: 0 });
  logger.lines.length = 0;
  regions.batch(() => rom.map());
  const warnings = logger.lines.filter((line) => line.includes("shows nowhere"));
  assertEquals(warnings, [
    'Region "rom" 0x1000-0x2000 is mapped and shows nowhere: "ram" 0x0-0x4000 hides it',
  ]);
});
