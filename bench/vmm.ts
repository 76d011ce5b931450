/**
 * The same requests where a real VMM makes them: RAM with the ranges of a PC chipset, a virtual machine, a client in a
 * Worker that is served, shareable regions that somebody watches, and memory that a device has locked.
 *
 * @module
 */

import { GuestMemoryManager, type LockedMemory, type Mappable, MemoryRange, type RegionHandle } from "membacking";
import { KIB, MIB, PAGE, PAM_SIZE, RESERVED } from "./layout.ts";
import {
  barMove,
  type Bench,
  bench,
  deviceWindow,
  type Machine,
  mapUnmap,
  type Place,
  replace,
  switchRegions,
} from "./ours.ts";

/** How much RAM it has, below everything that the rows map. */
const RAM = 64 * MIB;
const PAM = new MemoryRange(0x10_0000 - PAM_SIZE, 0x10_0000);

/** The VMM, for as long as the rows are measured. */
export class Vmm implements AsyncDisposable {
  readonly guest: GuestMemoryManager;
  /** How often the list of shareable regions was told anew. */
  told = 0;
  readonly #stack: AsyncDisposableStack;

  private constructor(guest: GuestMemoryManager, stack: AsyncDisposableStack) {
    this.guest = guest;
    this.#stack = stack;
  }

  /** Sets it up; `hook` gives it a quiesce hook, which costs nothing itself. */
  static async start(machine: Machine, { hook }: { hook: boolean }): Promise<Vmm> {
    await using undo = new AsyncDisposableStack();
    const guest = undo.use(GuestMemoryManager.create({
      maxAddress: RESERVED,
      ram: [{ ranges: [new MemoryRange(0, RAM)] }],
      x86Legacy: true,
      ...(hook && { quiesce: () => ({ [Symbol.dispose]() {} }) }),
    }));
    if (machine.vm !== null) undo.use(guest.attachPartition(machine.vm));
    await connectWorker(guest, undo);
    const ring: LockedMemory = undo.use(guest.memory.lock(MemoryRange.of(RAM / 2, PAGE), { write: true }));
    ring.bytes[0] = 1;
    const vmm = new Vmm(guest, undo.move());
    vmm.#stack.use(guest.watchShareableRegions(() => vmm.told++));
    return vmm;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
  }
}

/** Serves a client in a Worker until the end, which has read guest memory by the time this returns. */
async function connectWorker(guest: GuestMemoryManager, stack: AsyncDisposableStack): Promise<void> {
  const { port1, port2 } = new MessageChannel();
  stack.use(guest.regions.serve(port1));
  const worker = new Worker(new URL("./vmm_client.ts", import.meta.url), { type: "module" });
  stack.defer(() => worker.terminate());
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  worker.onmessage = () => resolve();
  worker.onerror = (event) => reject(new Error(event.message));
  worker.postMessage(port2, [port2]);
  await promise;
}

/** Regions of one type among the others of the VMM. */
class Among implements Place {
  readonly regions;
  readonly file: Mappable;
  readonly #type: "ram" | "device";
  readonly #stack = new DisposableStack();

  constructor({ guest }: Vmm, { file }: Machine, type: "ram" | "device") {
    this.regions = guest.regions;
    this.file = file;
    this.#type = type;
  }

  region(start: number, length: number, holes: "exit" | "fault" = "exit"): RegionHandle {
    const range = MemoryRange.of(start, length);
    return this.#stack.use(
      this.regions.newRegion({ name: "bench", range, priority: 0, holes, type: this.#type }),
    );
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}

function pam({ guest }: Vmm): Bench {
  return bench(new DisposableStack(), (count) => {
    for (let i = 0; i < count; i++) {
      guest.setRamVisibility(PAM, "read-only");
      guest.setRamVisibility(PAM, "read-write");
    }
  });
}

/** The rows, by name. */
export const IN_A_VMM: Readonly<Record<string, (vmm: Vmm, machine: Machine) => Bench>> = {
  "vmm-window-64k": (vmm, machine) => mapUnmap(new Among(vmm, machine, "device"), 64 * KIB, "fault"),
  "vmm-device-64k": (vmm, machine) => deviceWindow(vmm.guest, machine),
  "vmm-replace-64k": (vmm, machine) => replace(new Among(vmm, machine, "device"), 64 * KIB),
  "vmm-switch": (vmm, machine) => switchRegions(new Among(vmm, machine, "device")),
  "vmm-bar-move": (vmm, machine) => barMove(vmm.guest, machine),
  "vmm-bar-move-held": (vmm, machine) => barMove(vmm.guest, machine),
  "vmm-pam": pam,
  "ram-window-64k": (vmm, machine) => mapUnmap(new Among(vmm, machine, "ram"), 64 * KIB, "fault"),
  "ram-replace-64k": (vmm, machine) => replace(new Among(vmm, machine, "ram"), 64 * KIB),
  "ram-switch": (vmm, machine) => switchRegions(new Among(vmm, machine, "ram")),
};
