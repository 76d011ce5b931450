/**
 * The front end with vhost-device-media at the other end (`cargo install vhost-device-media --features simple-capture`): a
 * back end of others that maps files of its own into guest memory, by SHMEM_MAP, with the messages and features as
 * rust-vmm numbers them.
 *
 * @module
 */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { GuestMemoryManager, MemoryRange } from "membacking";
import { ProtocolFeature, VhostUserFrontend, VhostUserMemory } from "membacking/vhost-user";
import { askProgram, testUnless } from "../support/require.ts";
import { Virtqueue } from "./virtqueue.ts";

const PROGRAM = "vhost-device-media";

function whyNot(backend: string): string | undefined {
  const answer = askProgram(PROGRAM, "crates.io", "--help");
  if (answer.missing !== undefined) return answer.missing;
  return answer.said.includes(backend) ? undefined : `${PROGRAM} was built without its feature ${backend}`;
}

const RAM = new MemoryRange(0, 0x100_0000);

/** A guest's memory with the device attached. */
class Media implements AsyncDisposable {
  readonly refusals: readonly string[];
  readonly #stack: AsyncDisposableStack;
  readonly guest: GuestMemoryManager;
  readonly frontend: VhostUserFrontend;
  readonly memory: VhostUserMemory;

  private constructor(
    stack: AsyncDisposableStack,
    guest: GuestMemoryManager,
    frontend: VhostUserFrontend,
    memory: VhostUserMemory,
    refusals: readonly string[],
  ) {
    this.refusals = refusals;
    this.#stack = stack;
    this.guest = guest;
    this.frontend = frontend;
    this.memory = memory;
  }

  static async start(backend: string): Promise<Media> {
    const directory = Deno.makeTempDirSync();
    await using stack = new AsyncDisposableStack();
    stack.defer(() => Deno.removeSync(directory, { recursive: true }));
    const process = new Deno.Command(PROGRAM, {
      args: [`--socket-path=${directory}/media.sock`, `--backend=${backend}`],
      ...{ stdin: "null", stdout: "null", stderr: "null" },
    }).spawn();
    stack.defer(async () => {
      process.kill("SIGKILL");
      await process.status;
    });
    const guest = stack.use(GuestMemoryManager.create({ maxAddress: 0x4_0000_0000, ram: [{ ranges: [RAM] }] }));
    const refusals: string[] = [];
    const frontend = stack.use(
      await VhostUserFrontend.connect(`${directory}/media.sock`, {
        patience: 10_000,
        onRefusal: (request, error) => void refusals.push(`${request}: ${error}`),
      }),
    );
    const memory = stack.use(new VhostUserMemory(frontend));
    stack.use(guest.regions.addDmaTarget(memory));
    return new Media(stack.move(), guest, frontend, memory, refusals);
  }

  [Symbol.asyncDispose](): PromiseLike<void> {
    return this.#stack[Symbol.asyncDispose]();
  }
}

testUnless(
  whyNot("null"),
  "vhost-device-media: its shared memory region is agreed on, and it is told of memory",
  async () => {
    await using media = await Media.start("null");
    const { frontend, memory } = media;
    assertEquals(frontend.protocolFeatures & ProtocolFeature.SHMEM, ProtocolFeature.SHMEM);
    assertEquals(await frontend.getShmemConfig(), [2 ** 32]);
    assertEquals(memory.table.map(({ range }) => `${range}`), [`${RAM}`]);
    assertEquals(frontend.state, "connected");
  },
);

const WINDOW_AT = 0x2_0000_0000;
/** The device's buffers: 640 x 480 pixels of YUV 4:2:0. */
const BUFFER = 640 * 480 * 3 / 2;
const COMMAND = { open: 1, close: 2, ioctl: 3, mmap: 4, munmap: 5 } as const;
const VIDIOC_REQBUFS = 8;
const [CAPTURE_MPLANE, MEMORY_MMAP] = [9, 1];

function words(...values: number[]): Uint8Array {
  return new Uint8Array(Uint32Array.from(values).buffer);
}

/** Talks to the device as its driver would: virtio-media's commands. */
class Driver {
  readonly #queue: Virtqueue;

  constructor(queue: Virtqueue) {
    this.#queue = queue;
  }

  /** The words of the answer after its header. */
  async #command(command: Uint8Array, answer: number): Promise<DataView> {
    const [bytes = new Uint8Array()] = await this.#queue.request([command, 8 + answer]);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    assertEquals(view.getInt32(0, true), 0, "the device's errno");
    return new DataView(bytes.buffer, bytes.byteOffset + 8, answer);
  }

  async open(): Promise<number> {
    return (await this.#command(words(COMMAND.open, 0), 8)).getUint32(0, true);
  }

  async requestBuffers(session: number, count: number): Promise<number> {
    const request = words(COMMAND.ioctl, 0, session, VIDIOC_REQBUFS, count, CAPTURE_MPLANE, MEMORY_MMAP, 0, 0);
    return (await this.#command(request, 20)).getUint32(0, true);
  }

  async map(session: number, offset: number, writable: boolean): Promise<{ at: number; length: number }> {
    const answer = await this.#command(words(COMMAND.mmap, 0, session, writable ? 1 : 0, offset), 16);
    return { at: Number(answer.getBigUint64(0, true)), length: Number(answer.getBigUint64(8, true)) };
  }

  async unmap(at: number): Promise<void> {
    await this.#command(words(COMMAND.munmap, 0, at % 2 ** 32, Math.floor(at / 2 ** 32)), 0);
  }
}

testUnless(
  whyNot("simple-capture"),
  "vhost-device-media maps its buffers into the guest's window by SHMEM_MAP and takes them away, and they are its own memory",
  async () => {
    await using media = await Media.start("simple-capture");
    const { guest, frontend, refusals } = media;
    const window = guest.newDeviceMemory("buffers", 2 ** 32, { holes: "exit" });
    window.mapToGuest(WINDOW_AT, true);
    frontend.provideShmem(0, window);
    await frontend.setFeatures(frontend.features & 1n << 32n);
    using commands = new Virtqueue(guest.memory, 0x10_0000);
    using events = new Virtqueue(guest.memory, 0x20_0000);
    await commands.start(frontend, 0);
    await events.start(frontend, 1);

    const driver = new Driver(commands);
    const session = await driver.open();
    assertEquals(await driver.requestBuffers(session, 3), 3);
    const first = await driver.map(session, 0, true);
    const second = await driver.map(session, 0x1000, false);
    assertEquals(refusals, []);
    assertEquals([first.length, second.length], [BUFFER, BUFFER]);

    // The device's own files, the last page of each whole.
    const { memory } = guest;
    const piece = memory.find(WINDOW_AT + first.at);
    assertEquals(piece?.range.length, Math.ceil(BUFFER / 4096) * 4096);
    assert(piece?.kind === "shared" && piece.writable);
    memory.writeUint32(WINDOW_AT + first.at + BUFFER - 4, 0x1234_5678);
    assertEquals(memory.readUint32(WINDOW_AT + second.at), 0);
    assertThrows(() => memory.writeUint32(WINDOW_AT + second.at, 1));

    await driver.unmap(first.at);
    assertEquals(memory.find(WINDOW_AT + first.at), null);
    assertEquals(memory.isMapped(WINDOW_AT + second.at, BUFFER), true);
    const again = await driver.map(session, 0, true);
    assertEquals(memory.readUint32(WINDOW_AT + again.at + BUFFER - 4), 0x1234_5678);
    await driver.unmap(again.at);
    await driver.unmap(second.at);
    assertEquals(window.inspect().mappings, []);
    assertEquals(refusals, []);
    assertEquals(frontend.state, "connected");
  },
);
