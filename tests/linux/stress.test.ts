import { assert, assertEquals, assertGreater } from "@std/assert";
import { Mappable, MemoryRange } from "membacking";
import { CARDS } from "../../examples/linux/memory.ts";
import { Linux, linuxTest } from "./rig.ts";

const MIB = 0x10_0000;
const PAGE = 0x1000;
const LENGTH = 16 * PAGE;
/** Places at which the card's memory may be, and a window that always shows some memory. */
const [A, B, SWITCHED] = [CARDS.start, CARDS.start + MIB, CARDS.start + 2 * MIB];

/** Requests that a running guest could see half done, and requests that it cannot. */
const TORN = 1000;
const ATOMIC = 10_000;

interface Tally {
  readonly rounds: readonly number[];
  readonly wrong: number;
  readonly looks: number;
  readonly nothing: number;
  readonly misplaced: number;
}

/** A memfd each page of which begins with its number and a generation. */
function generation(number: number): Mappable {
  const file = Mappable.memfd(`generation ${number}`, LENGTH);
  for (let page = 0; page < LENGTH / PAGE; page++) {
    file.write(page * PAGE, new Uint8Array(new Uint32Array([number << 16 | page]).buffer));
  }
  return file;
}

linuxTest(
  `Linux uses all of its memory while ${TORN} requests are torn under quiesce and ${ATOMIC} are not`,
  async () => {
    const strays: { gpa: number; isWrite: boolean }[] = [];
    let watching = false;
    await using linux = await Linux.boot({
      onStray: (gpa, isWrite) => {
        if (watching) strays.push({ gpa, isWrite });
      },
    });
    const { shell, machine } = linux;
    const { guest } = machine.memory;
    using files = new DisposableStack();
    const generations = Array.from({ length: 4 }, (_, i) => files.use(generation(i)));
    const pick = (i: number): Mappable => generations[i % generations.length] ?? generations[0]!;
    const card = machine.memory.newCard(LENGTH);
    card.map({ offset: 0, mappable: pick(0) });
    card.mapToGuest(A, true);
    const switched = guest.regions.newRegion({
      name: "switched",
      range: MemoryRange.of(SWITCHED, LENGTH),
      priority: 1,
    });
    switched.addMapping({ rangeInRegion: MemoryRange.of(0, LENGTH), mappable: pick(0) });
    switched.map();

    // Most of what is free, for two processes.
    const free = Number(await shell.output("awk '/MemAvailable/ { print int($2 / 1024) }' /proc/meminfo"));
    const each = Math.floor(free * 0.4);
    watching = true;
    const running = shell.run(
      `stress ${each} ${A.toString(16)} ${B.toString(16)} ${SWITCHED.toString(16)} ${LENGTH.toString(16)}`,
    );
    await shell.line("stress: runs");
    machine.takeSlotChanges();

    const turn = () => new Promise((resolve) => setTimeout(resolve, 0)); // devices answer between requests
    for (let i = 0; i < TORN; i++) {
      switch (i % 4) {
        case 0:
          card.mapToGuest(B, true);
          break;
        case 1:
          card.mapToGuest(B, false); // as a chipset makes shadow RAM read-only
          break;
        case 2:
          card.mapToGuest(B, true);
          break;
        default:
          card.mapToGuest(A, true);
      }
      for (let k = 0; k < ATOMIC / TORN; k++) {
        switched.addMapping({ rangeInRegion: MemoryRange.of(0, LENGTH), mappable: pick(i + k + 1) });
      }
      await turn();
    }
    const { made, deleted } = machine.takeSlotChanges();
    machine.type("x");
    const { status, lines } = await running;
    const tally = JSON.parse(lines.at(-1) ?? "") as Tally;
    assertEquals([status, tally.wrong, tally.misplaced], [0, 0, 0], lines.join("\n"));
    assert(tally.rounds.every((rounds) => rounds > 0), "both processes filled and checked all of it");
    assertGreater(tally.looks, 1000);
    // A request that is torn deletes and makes a slot, the others touch none.
    assertEquals([made.length, deleted.length], [TORN, TORN]);
    // Nothing left the guest but reads of the places where the card was not.
    const isPlace = (gpa: number) => gpa >= A && gpa < A + LENGTH || gpa >= B && gpa < B + LENGTH;
    assertEquals(strays.filter(({ gpa, isWrite }) => isWrite || !isPlace(gpa)), []);
    assertEquals(tally.nothing, strays.length);

    const end = await linux.powerOff();
    assertEquals([end.why, end.crash], ["off", null]);
  },
);
