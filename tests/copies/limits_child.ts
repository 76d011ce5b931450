/**
 * Restores, saves, clones, rolls back and more in a process that has too few descriptors or kernel mappings, with more of
 * them each time until there are enough. Prints what came of each.
 *
 * @module
 */

import { GuestMemoryManager, MemoryRange, Snapshot } from "membacking";
import { mappings, openFiles } from "../support/proc.ts";
import { PAGE } from "../support/units.ts";
import { fewMappings, noDescriptors } from "../vm/children/limits.ts";

const SIZE = 0x40_0000;
const PAGES = SIZE / PAGE;
/** What each page has in its first byte, at each of three moments. */
const MOMENTS: number[][] = [];

const folder = Deno.args[0]!;
using guest = GuestMemoryManager.create({
  maxAddress: 2 ** 24,
  ram: [{ ranges: [MemoryRange.of(0, SIZE / 2)] }, { ranges: [MemoryRange.of(SIZE / 2, SIZE / 2)] }],
});
const look = ({ memory }: GuestMemoryManager) =>
  Array.from({ length: PAGES }, (_, page) => memory.readUint8(page * PAGE));
using tracker = guest.trackDirty();
const snapshots: Snapshot[] = [];
for (let moment = 0; moment < 3; moment++) {
  // Every sixteenth page, so that a difference has many runs.
  for (let page = moment; page < PAGES; page += moment === 0 ? 1 : 16) {
    guest.memory.writeUint8(page * PAGE, 1 + (page + moment) % 200);
  }
  const pages = tracker.take();
  const base = snapshots.at(-1);
  snapshots.push(await guest.save(`${folder}/${moment}`, base === undefined ? {} : { base, pages }));
  MOMENTS.push(look(guest));
}
using template = guest.freeze();
guest.memory.writeUint8(0, 250);

const last = snapshots.at(-1)!;
const right = (made: GuestMemoryManager) => {
  if (`${look(made)}` !== `${MOMENTS.at(-1)}`) throw new Error("wrong memory");
  made[Symbol.dispose]();
};
const ACTS: Record<string, () => void | Promise<void>> = {
  "restore": () => right(GuestMemoryManager.restore(last)),
  "restore a copy": () => right(GuestMemoryManager.restore(last, { copyOnWrite: false })),
  "clone": () => right(template.clone()),
  "rollback of a restored guest": () => {
    using made = GuestMemoryManager.restore(last);
    made.memory.fill(0, SIZE, 9);
    made.rollback();
    right(made);
  },
  "open": async () =>
    (await Snapshot.open(`${folder}/2`, { parents: [`${folder}/0`, `${folder}/1`] }))[Symbol.dispose](),
  "flatten": async () => (await last.flatten(`${folder}/more`))[Symbol.dispose](),
  "freeze again": () => {
    using made = GuestMemoryManager.restore(last);
    made.memory.writeUint8(0, 1);
    made.freeze()[Symbol.dispose]();
    made.memory.writeUint8(0, 2);
    made.freeze()[Symbol.dispose]();
    made.memory.writeUint8(0, 3);
    made.rollback();
    if (made.memory.readUint8(0) !== 2) throw new Error("wrong memory");
  },
  "requests": () => {
    using made = template.clone();
    const { regions, memory } = made;
    using _tracker = made.trackDirty();
    const below = regions.newRegion({ name: "private", range: MemoryRange.of(2 ** 23, SIZE), priority: 0 });
    below.addMapping({ rangeInRegion: MemoryRange.of(0, SIZE), mappable: "private" });
    below.map();
    for (let page = 0; page < PAGES; page += 2) memory.writeUint8(2 ** 23 + page * PAGE, 1 + page % 200);
    regions.batch(() => {
      for (let page = 0; page < PAGES; page += 16) {
        const rangeInRegion = MemoryRange.of(page * PAGE, PAGE);
        below.removeMappings(rangeInRegion);
        below.addMapping({ rangeInRegion, mappable: "private", writable: false });
      }
    });
    made.setRamVisibility(MemoryRange.of(0, SIZE / 2), "read-only");
    made.discard(MemoryRange.of(SIZE / 2, SIZE / 4));
    below.unmap();
    below.map();
    if (memory.readUint8(2 ** 23 + 2 * PAGE) !== 3) throw new Error("wrong memory");
    {
      using lock = memory.lock(MemoryRange.of(0, 64 * PAGE));
      if (lock.bytes.length !== 64 * PAGE) throw new Error("a short lock");
    }
  },
  "save": async () => (await guest.save(`${folder}/more`))[Symbol.dispose](),
};
/** Those that leave a directory. */
const WRITES = new Set(["save", "flatten"]);
const mine = () => mappings().filter(({ file }) => /memfd:|membacking|\/memory$/.test(file)).length;

const report: Record<string, { failures: string[]; done: boolean }> = {};
for (
  const [what, few, steps] of [
    ["descriptors", noDescriptors, Array.from({ length: 24 }, (_, i) => i)],
    ["mappings", fewMappings, Array.from({ length: 32 }, (_, i) => 64 + 24 * i)],
  ] as const
) {
  for (const [name, act] of Object.entries(ACTS)) {
    await act();
    if (WRITES.has(name)) await Deno.remove(`${folder}/more`, { recursive: true });
    const [files, maps] = [`${openFiles()}`, mine()];
    const failures: string[] = [];
    let done = false;
    for (const spare of steps) {
      let error: unknown;
      {
        using _few = few(spare);
        try {
          await act();
        } catch (thrown) {
          error = thrown;
        }
      }
      const left = [...Deno.readDirSync(folder)].map(({ name }) => name).sort();
      if (`${left}` !== (WRITES.has(name) && error === undefined ? "0,1,2,more" : "0,1,2")) {
        failures.push(`files: ${left}`);
      }
      if (WRITES.has(name)) await Deno.remove(`${folder}/more`, { recursive: true }).catch(() => {});
      if (`${openFiles()}` !== files) failures.push(`open: ${openFiles()}`);
      if (mine() !== maps) failures.push(`${mine() - maps} mappings more`);
      if (error === undefined) {
        done = true;
        break;
      }
      failures.push(said(error));
    }
    report[`${name}, ${what}`] = { failures, done };
  }
}
if (guest.memory.readUint8(0) !== 250) throw new Error("the guest has other memory");
for (const snapshot of snapshots) {
  await snapshot.verify();
  snapshot[Symbol.dispose]();
}
console.log(JSON.stringify(report));

function said(error: unknown): string {
  if (!(error instanceof Error)) return `${error}`;
  const { code } = error as { code?: unknown };
  const cause = error.cause === undefined ? "" : ` for ${said(error.cause)}`;
  const what = typeof code === "string" ? ` ${code}` : error.constructor === Error ? `: ${error.message}` : "";
  return `${error.name}${what}${cause}`;
}
