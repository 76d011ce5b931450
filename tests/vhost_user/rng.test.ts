/**
 * The front end with vhost-device-rng at the other end (`cargo install vhost-device-rng`), which is built on rust-vmm's
 * implementation of the protocol.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { GuestMemoryManager, Mappable, MemoryRange } from "membacking";
import { VhostUserFrontend, VhostUserMemory } from "membacking/vhost-user";
import { askProgram, testUnless } from "../support/require.ts";
import { Virtqueue } from "./virtqueue.ts";

const PROGRAM = "vhost-device-rng";

/** A device on a socket; it appends its number to the path. */
class RngDevice implements AsyncDisposable {
  readonly #process: Deno.ChildProcess;

  constructor(socket: string) {
    this.#process = new Deno.Command(PROGRAM, {
      args: [`--socket-path=${socket}`, "--socket-count=1", "--rng-source=/dev/urandom"],
      ...{ stdin: "null", stdout: "null", stderr: "null" },
    }).spawn();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      this.#process.kill("SIGKILL");
    } catch {
      // It has ended by itself.
    }
    await this.#process.status;
  }
}

testUnless(
  askProgram(PROGRAM, "crates.io").missing,
  "vhost-device-rng: random bytes arrive in memory that was added, cut, switched; and after a crash",
  async () => {
    const directory = Deno.makeTempDirSync();
    const socket = `${directory}/rng.sock0`;
    await using stack = new AsyncDisposableStack();
    stack.defer(() => Deno.removeSync(directory, { recursive: true }));
    const devices = [new RngDevice(`${directory}/rng.sock`)];
    stack.defer(async () => {
      for (const device of devices) await device[Symbol.asyncDispose]();
    });
    const guest = stack.use(GuestMemoryManager.create({
      maxAddress: 0x2_0000_0000,
      ram: [{ ranges: [new MemoryRange(0, 0x100_0000)] }],
      x86Legacy: true,
    }));
    const frontend = stack.use(await VhostUserFrontend.connect(socket, { patience: 10_000 }));
    const memory = stack.use(new VhostUserMemory(frontend));
    stack.use(guest.regions.addDmaTarget(memory));
    await frontend.setFeatures(frontend.features & 1n << 32n);

    using queue = new Virtqueue(guest.memory, 0x10_0000);
    await queue.start(frontend, 0);
    const gets = async () => {
      const [bytes] = await queue.request([64]);
      assert(bytes!.some((byte) => byte !== 0), "64 random bytes are not all zeros");
    };
    await gets();

    const added = guest.regions.newRegion({
      name: "added",
      range: MemoryRange.of(0x1_0000_0000, 0x10_0000),
      priority: 1,
    });
    using files = new DisposableStack();
    for (let round = 0; round < 3; round++) {
      const file = files.use(Mappable.memfd("added", 0x10_0000));
      added.addMapping({ rangeInRegion: new MemoryRange(0, 0x10_0000), mappable: file });
      added.map();
      await gets();
      added.removeMappings(new MemoryRange(0x4000, 0x8000));
      await gets();
    }
    added.unmap();
    // The entry with the ring is cut, and made whole again.
    for (const to of ["unmapped", "read-write"] as const) {
      guest.setRamVisibility(new MemoryRange(0xa0000, 0xc0000), to);
      await gets();
    }
    assertEquals([frontend.state, frontend.vrings[0]?.state], ["connected", "running"]);

    await devices[0]![Symbol.asyncDispose]();
    while (frontend.state === "connected") await new Promise((resolve) => setTimeout(resolve, 1));
    try {
      Deno.removeSync(socket);
    } catch {
      // It has removed it itself.
    }
    devices.push(new RngDevice(`${directory}/rng.sock`));
    await frontend.reconnect({ patience: 10_000 });
    await gets();
  },
);
