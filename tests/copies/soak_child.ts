/**
 * Freezes, clones, rolls back, thaws and saves at random until it is killed, checking every page it knows: what
 * `soak.test.ts` and `soak.ts` run.
 *
 * @module
 */

import { GuestMemoryManager, MemoryRange, type Template } from "membacking";
import { Kvm } from "membacking/kvm";

const [directory = "", seedText = "1"] = Deno.args;
const MIB = 2 ** 20;
const PAGES = 8 * MIB / 4096;
let state = Number(seedText) >>> 0;

/** A whole number below `limit`, by xorshift. */
function random(limit: number): number {
  state ^= state << 13;
  state ^= state >>> 17;
  state = (state ^ state << 5) >>> 0;
  return state % limit;
}

/** A guest, and the first word of each of its pages that was written. */
interface Known {
  readonly guest: GuestMemoryManager;
  words: Map<number, number>;
  base: Map<number, number> | null;
}

function write({ guest, words }: Known): void {
  for (let i = 0; i < 20; i++) {
    const page = random(PAGES);
    const word = random(2 ** 32);
    guest.memory.writeUint32(page * 4096, word);
    words.set(page, word);
  }
}

function check({ guest, words }: Known, what: string): void {
  for (let i = 0; i < 50; i++) {
    const page = random(PAGES);
    const [found, expected] = [guest.memory.readUint32(page * 4096), words.get(page) ?? 0];
    if (found !== expected) throw new Error(`${what}: page ${page} has ${found}, and ${expected} was written`);
  }
}

const kvm = (() => {
  try {
    return Kvm.open();
  } catch {
    return null;
  }
})();
const source: Known = {
  guest: GuestMemoryManager.create({ maxAddress: 16 * MIB, ram: [{ ranges: [new MemoryRange(0, 8 * MIB)] }] }),
  words: new Map(),
  base: null,
};
const templates: { template: Template; words: Map<number, number> }[] = [];
const clones: (Known & { readonly stack: DisposableStack })[] = [];
let saves = 0;
let saving: Promise<void> | null = null;

async function step(): Promise<void> {
  const known = clones.length > 0 && random(2) === 0 ? clones[random(clones.length)]! : source;
  switch (random(9)) {
    case 0:
      if (templates.length > 4) templates.splice(random(templates.length), 1)[0]!.template[Symbol.dispose]();
      templates.push({ template: known.guest.freeze(), words: new Map(known.words) });
      known.base = new Map(known.words);
      break;
    case 1:
    case 2: {
      const from = templates[random(templates.length || 1)];
      if (from === undefined) break;
      if (clones.length > 8) clones.splice(random(clones.length), 1)[0]!.stack.dispose();
      const stack = new DisposableStack();
      const guest = stack.use(from.template.clone());
      if (kvm !== null) stack.use(guest.attachPartition(stack.use(kvm.createVm())));
      clones.push({ guest, words: new Map(from.words), base: new Map(from.words), stack });
      break;
    }
    case 3:
      if (known.base === null) break;
      known.guest.rollback();
      known.words = new Map(known.base);
      break;
    case 4:
      if (known !== source) break;
      for (const { template } of templates.splice(0)) template[Symbol.dispose]();
      for (const { stack } of clones.splice(0)) stack.dispose();
      if (saving !== null) await saving;
      source.guest.thaw();
      source.base = null;
      break;
    case 5: {
      if (saving !== null) break;
      const number = ++saves;
      const words = new Map(known.words);
      const live = random(2) === 0;
      const made = known.guest.save(`${directory}/${number}`, { live });
      saving = made.then((snapshot) => {
        using _snapshot = snapshot;
        using guest = GuestMemoryManager.restore(snapshot);
        check({ guest, words, base: null }, `snapshot ${number}`);
        if (number > 3) Deno.removeSync(`${directory}/${number - 3}`, { recursive: true });
        saving = null;
      });
      break;
    }
    default:
      write(known);
  }
  if (!known.guest.regions.disposed) check(known, known === source ? "the source" : "a clone");
  check(source, "the source");
}

for (let steps = 1;; steps++) {
  await step();
  if (steps % 50 === 0) {
    console.log(steps);
    await new Promise((resolve) => setTimeout(resolve, 0));
  }
}
