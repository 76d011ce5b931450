import type { Mappable } from "../../ffi/files/mappable.ts";
import { hostOf, VaMapper } from "../../ffi/host/va_mapper.ts";
import { checkAligned } from "../core/memory_range.ts";
import { type BackingLayout, layOutRam, RAM_ALIGNMENT, RAM_PRIORITY } from "../core/ram_layout.ts";
import type { VaTarget } from "../core/targets.ts";
import { RegionManager } from "../regions/region_manager.ts";
import { checkPriority } from "../targets/checks.ts";
import { type Report, reportTo } from "../targets/report.ts";
import type { GuestMemoryOptions } from "./options.ts";
import { Ram } from "./ram.ts";
import { type OwnBacking, ownBacking, ramRequest } from "./ram_backing.ts";

/** What guest memory is put together of. */
export interface GuestParts {
  readonly regions: RegionManager;
  readonly va: VaTarget<Mappable>;
  /** The reservation, if it is the manager's own. */
  readonly reserved: VaMapper | null;
  readonly ram: Ram;
  /** Whether memory is pinned for partitions. */
  readonly pin: boolean;
  /** The largest page size in use. */
  readonly pageSize: number;
  readonly report: Report;
  readonly layout: { readonly maxAddress: number; readonly x86Legacy: boolean; readonly ramPriority: number };
}

/** RAM that has been checked and laid out, one layout a backing. That of a template is the same for all its clones. */
export interface LaidOutRam {
  readonly backings: readonly OwnBacking[];
  readonly layouts: readonly BackingLayout[];
}

/** Checks the RAM that is asked for, and lays it out. */
export function laidOutRam({ maxAddress, ram, x86Legacy = false }: GuestMemoryOptions): LaidOutRam {
  checkAligned(maxAddress, "maxAddress");
  if (maxAddress === 0) throw new RangeError("maxAddress must not be 0");
  if (!Array.isArray(ram)) throw new TypeError("ram must be an array of RAM backings");
  const backings = Array.from(ram, ownBacking);
  return { backings, layouts: layOutRam(backings.map(ramRequest), { maxAddress, x86Legacy }) };
}

/** Checks the other options, reserves addresses and makes the RAM. What has been made is disposed with `stack`. */
export function guestParts(
  options: Omit<GuestMemoryOptions, "ram">,
  { backings, layouts }: LaidOutRam,
  stack: DisposableStack,
): GuestParts {
  const { maxAddress, x86Legacy = false, pin = false, overlap, logger, quiesce, va: chosen } = options;
  const { ramPriority = RAM_PRIORITY } = options;
  checkPriority(ramPriority, "ramPriority");
  const report = reportTo(logger);
  const pageSize = Math.max(RAM_ALIGNMENT, ...layouts.map(({ pageSize }) => pageSize));
  const reserved = chosen === undefined ? stack.use(VaMapper.reserve(maxAddress, { alignment: pageSize })) : null;
  const given = chosen ?? reserved;
  if (given === null) throw new TypeError("va must not be null");
  if (!(given.length >= maxAddress)) {
    throw new RangeError(`va has ${given.length} bytes, and maxAddress of ${maxAddress} needs as many`);
  }
  const va = hostOf(given);
  const regions = stack.use(
    new RegionManager(given, {
      ...(logger !== undefined && { logger }),
      ...(overlap !== undefined && { overlap }),
      ...(quiesce !== undefined && { quiesce }),
    }),
  );
  const ram = new Ram(regions, { maxAddress, priority: ramPriority, hasMemory: va.view !== undefined, report });
  ram.add(backings, layouts);
  return { regions, va, reserved, ram, pin, pageSize, report, layout: { maxAddress, x86Legacy, ramPriority } };
}
