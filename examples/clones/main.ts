/**
 * Clones of warm guests: `deno task clones [--count N]`.
 *
 * Two guests are brought to where they are of use: SeaBIOS, to the end of its search for something to boot, and one of
 * our own that runs natively and fills a table. Each is frozen, and clones of it are run, every one with another question
 * in its memory, whose answer is checked. At last one clone is rolled back a thousand times.
 *
 * @module
 */

import { OsError } from "membacking";
import { Kvm } from "membacking/kvm";
import { SetupError } from "../pc/setup_error.ts";
import { firmwareSubject } from "./firmware.ts";
import { shortages } from "./limits.ts";
import { nativeSubject } from "./native.ts";
import { type HostRange, ownBytes } from "./smaps.ts";
import { type CloneFigures, printSubject, type RollbackFigures } from "./report.ts";
import type { Machine, Subject } from "./subject.ts";

const ROLLBACKS = 1000;

function parse(args: readonly string[]): number {
  const [option, value] = args;
  if (option === undefined) return 100;
  const count = Number(value);
  if (option === "--count" && Number.isInteger(count) && count > 0) return count;
  throw new SetupError("Usage: deno task clones [--count N]");
}

/** Makes clones one after the other, which all stay until the end, and asks each a question of its own. */
function runClones(kvm: Kvm, subject: Subject, count: number): CloneFigures {
  const start = performance.now();
  using all = new DisposableStack();
  const clones: number[] = [];
  const answers: number[] = [];
  const places: HostRange[] = [];
  for (let i = 1; i <= count; i++) {
    const began = performance.now();
    const guest = all.use(subject.template.clone());
    const machine = all.use(subject.machine(kvm, guest));
    clones.push(performance.now() - began);
    check(machine, subject, i);
    answers.push(performance.now() - began);
    const start = guest.memory.hostAddress(0, 1);
    places.push({ start, end: start + subject.ram });
  }
  return { count, clones, answers, bytes: ownBytes(places), total: performance.now() - start };
}

function check(machine: Machine, subject: Subject, question: number): void {
  const [answer, expected] = [machine.ask(question), subject.answer(question)];
  if (answer !== expected) throw new Error(`Clone ${question} answered ${answer}, and ${expected} is right`);
}

/** Asks one clone again and again, going back each time to where it was. */
function runRollbacks(kvm: Kvm, subject: Subject): RollbackFigures {
  using guest = subject.template.clone();
  using machine = subject.machine(kvm, guest);
  const times: number[] = [];
  let pages = 0;
  const began = performance.now();
  for (let i = 1; i <= ROLLBACKS; i++) {
    check(machine, subject, i);
    const start = performance.now();
    pages += guest.rollback().count;
    times.push(performance.now() - start);
    machine.rewind();
  }
  return { count: ROLLBACKS, times, pages: pages / ROLLBACKS, total: performance.now() - began };
}

async function main(): Promise<void> {
  const count = parse(Deno.args);
  const missing = shortages(count);
  if (missing.length > 0) throw new SetupError(missing.join("\n"));
  using kvm = Kvm.open();
  const show = (subject: Subject) => {
    printSubject(subject, runClones(kvm, subject, count), runRollbacks(kvm, subject));
  };
  try {
    using firmware = await firmwareSubject();
    show(firmware);
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    console.log(`Without SeaBIOS: ${error.message}`);
  }
  using native = nativeSubject(kvm);
  show(native);
}

try {
  await main();
} catch (error) {
  // What a user can do something about is said without a stack.
  if (!(error instanceof SetupError || error instanceof OsError)) throw error;
  console.error(error.message);
  Deno.exitCode = 1;
}
