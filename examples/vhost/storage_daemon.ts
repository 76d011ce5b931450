/**
 * QEMU's storage daemon, as a process that serves one image as a vhost-user disk.
 *
 * @module
 */

/** The program, of the package qemu-system-common. */
const PROGRAM = "qemu-storage-daemon";

/** Why the daemon cannot be run here, `undefined` if it can. */
export function whyNoDaemon(): string | undefined {
  try {
    new Deno.Command(PROGRAM, { args: ["--version"], stdout: "null", stderr: "null" }).outputSync();
    return undefined;
  } catch {
    return `${PROGRAM} is not installed (package qemu-system-common)`;
  }
}

/** A running daemon. */
export class StorageDaemon implements AsyncDisposable {
  /** Where it listens. */
  readonly socket: string;
  readonly #process: Deno.ChildProcess;

  private constructor(socket: string, process: Deno.ChildProcess) {
    this.socket = socket;
    this.#process = process;
  }

  /** Starts one that serves `image` at the path `socket`, by one queue unless told otherwise; it listens soon after. */
  static start(image: string, socket: string, options: { queues?: number } = {}): StorageDaemon {
    const { queues = 1 } = options;
    try {
      Deno.removeSync(socket); // what a daemon that was killed has left
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
    const process = new Deno.Command(PROGRAM, {
      args: [
        ...["--blockdev", `driver=file,node-name=disk,filename=${image}`],
        "--export",
        `type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path=${socket},writable=on,num-queues=${queues}`,
      ],
      stdin: "null",
    }).spawn();
    return new StorageDaemon(socket, process);
  }

  /** Kills it, without giving it the time to say goodbye. */
  async kill(): Promise<void> {
    try {
      this.#process.kill("SIGKILL");
    } catch {
      // It has ended by itself.
    }
    await this.#process.status;
  }

  /** As `kill`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }
}

/** Makes an image whose sectors each begin with their number plus 1, in four bytes. */
export function makeImage(path: string, sectors: number): void {
  const bytes = new DataView(new ArrayBuffer(512 * sectors));
  for (let sector = 0; sector < sectors; sector++) bytes.setUint32(512 * sector, sector + 1, true);
  Deno.writeFileSync(path, new Uint8Array(bytes.buffer));
}
