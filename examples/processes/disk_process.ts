import type { GuestMemory, RegionManager } from "membacking";
import { byAccessors } from "../virtqueue/ring_memory.ts";
import { SplitQueue } from "../virtqueue/split_queue.ts";
import { QUEUE } from "./layout.ts";

const IO_ERROR = 1;

/** The disk's process as the VMM sees it: started, rung, and started again when it has ended. */
export class DiskProcess implements AsyncDisposable {
  readonly #regions: RegionManager;
  readonly #image: string;
  #running: { child: Deno.ChildProcess; served: Disposable; doorbell: WritableStreamDefaultWriter } | null = null;
  /** Is told when the process has ended, and with how many requests of the guest unanswered. */
  ended: (failed: number) => void = () => {};

  constructor(regions: RegionManager, image: string) {
    this.#regions = regions;
    this.#image = image;
  }

  /** Its number; `null` where it does not run. */
  get pid(): number | null {
    return this.#running?.child.pid ?? null;
  }

  /** Starts it, and waits until it serves the queue. */
  async start(): Promise<void> {
    const served = this.#regions.serveProcess((fd) =>
      new Deno.Command(Deno.execPath(), {
        args: [
          "run",
          "--no-prompt",
          "--allow-ffi",
          `--allow-read=${this.#image}`,
          `--allow-write=${this.#image}`,
          new URL("./disk.ts", import.meta.url).href,
          String(fd),
          this.#image,
        ],
        stdin: "piped",
        stdout: "piped",
        stderr: "inherit",
      }).spawn()
    );
    const { child } = served;
    const reader = child.stdout.getReader();
    const { done } = await reader.read();
    if (done) throw new Error("The disk's process has ended before it was ready");
    this.#running = { child, served, doorbell: child.stdin.getWriter() };
    void child.status.then(() => this.#hasEnded());
    this.ring(); // From now on the queue is its own.
  }

  /** The guest has made something available. */
  ring(): void {
    if (this.#running === null) return this.ended(this.#failAll());
    this.#running.doorbell.write(new Uint8Array(1)).catch(() => {}); // It has ended, which it tells by itself.
  }

  /** Kills it in the middle of whatever it does. */
  kill(): void {
    this.#running?.child.kill("SIGKILL");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.ended = () => {};
    const child = this.#running?.child;
    this.kill();
    await child?.status;
  }

  #hasEnded(): void {
    this.#running?.served[Symbol.dispose]();
    void this.#running?.doorbell.abort().catch(() => {});
    this.#running = null;
    this.ended(this.#failAll());
  }

  /** Answers everything that is waiting by an I/O error: the guest has a broken disk, and not a hanging one. */
  #failAll(): number {
    const memory: GuestMemory = this.#regions.memory;
    const queue = new SplitQueue(byAccessors(memory), QUEUE, { resume: true });
    let count = 0;
    for (let chain = queue.pop(); chain !== null; chain = queue.pop()) {
      const status = chain.writable.at(-1);
      if (status !== undefined) memory.writeUint8(status.gpa, IO_ERROR);
      queue.push(chain, 1);
      count++;
    }
    return count;
  }
}
