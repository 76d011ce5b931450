/**
 * Debian's Linux as a guest of tests: booted, and told commands by its serial port.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { cacheFolder, exists } from "../../examples/debian/cache.ts";
import { GuestShell } from "../../examples/linux/guest_shell.ts";
import { whyNoLinux } from "../../examples/linux/host.ts";
import {
  type Beginning,
  type LinuxEnd,
  LinuxMachine,
  type LinuxOptions,
  type LinuxState,
} from "../../examples/linux/machine.ts";
import { describeCrash } from "../../examples/pc/crash.ts";
import { linuxFolder } from "../../examples/linux/prepare.ts";
import { testUnless } from "../support/require.ts";

const FOLDER = `${cacheFolder()}/${linuxFolder()}`;

/** For whoever looks for what went wrong: set it, and the console is shown. */
const SHOW_CONSOLE = Deno.env.has("LINUX_CONSOLE");

/** Why Linux cannot be booted here, and where it can. */
export const noLinux: string | undefined = (() => {
  const hint =
    `"deno task nested --with $(deno task linux --prepare) -- deno test -A --no-check tests/linux" can run it`;
  const why = whyNoLinux() ?? (exists(FOLDER) ? null : `there is no ${FOLDER}`);
  return why === null ? undefined : `${why}; ${hint}`;
})();

/** Registers a test that boots Linux. */
export function linuxTest(name: string, fn: (t: Deno.TestContext) => Promise<void>): void {
  testUnless(noLinux, name, fn);
}

/** A Linux that is running. */
export class Linux implements AsyncDisposable {
  /** What it runs in. */
  readonly machine: LinuxMachine;
  /** What takes commands in it. */
  readonly shell: GuestShell;
  /** What its drivers did wrong. */
  readonly broken: unknown[] = [];
  #running: Promise<LinuxEnd>;

  private constructor(options: Partial<LinuxOptions>) {
    this.shell = new GuestShell((text) => this.machine.type(text));
    this.machine = new LinuxMachine({
      from: { folder: FOLDER },
      onBroken: (error) => this.broken.push(error),
      ...options,
      onByte: (byte) => {
        if (SHOW_CONSOLE) Deno.stderr.writeSync(new Uint8Array([byte]));
        this.shell.take(byte);
      },
    });
    this.#running = this.#run();
  }

  /** Boots one to user space. */
  static async boot(options: Partial<LinuxOptions> = {}): Promise<Linux> {
    const linux = new Linux(options);
    try {
      await linux.shell.ready();
    } catch (error) {
      linux.machine[Symbol.dispose]();
      throw error;
    }
    return linux;
  }

  /** Lets one go on from what another one was, in user space already. */
  static resume(from: Beginning): Linux {
    return new Linux({ from });
  }

  /** Stops it where it is, and says what it is then. */
  async stop(): Promise<LinuxState> {
    this.machine.stop();
    assertEquals((await this.#running).why, "stopped");
    return this.machine.saveState();
  }

  /** Lets it go on. */
  goOn(): void {
    this.#running = this.#run();
  }

  /** Lets Linux switch itself off. */
  async powerOff(): Promise<LinuxEnd> {
    this.shell.send("poweroff -f");
    return await this.#running;
  }

  /** Switches it off, wherever it is. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.machine.stop();
    await this.#running.catch(() => {});
    this.machine[Symbol.dispose]();
  }

  #run(): Promise<LinuxEnd> {
    const running = this.machine.run().then((end) => {
      if (end.why !== "stopped") {
        this.shell.close([end.why, ...end.crash === null ? [] : describeCrash(end.crash)].join("\n"));
      }
      return end;
    }, (error) => {
      this.shell.close(String(error));
      throw error;
    });
    running.catch(() => {}); // whoever waits for the end sees it
    return running;
  }
}
