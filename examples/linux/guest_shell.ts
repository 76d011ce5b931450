/**
 * The shell in the guest, to be told commands from here: what its console says, line by line, and where the output of a
 * command ends.
 *
 * @module
 */

import { READY, STATUS } from "./guest/init.ts";

/** What became of a command. */
export interface CommandResult {
  /** Its exit status. */
  readonly status: number;
  /** What it printed. */
  readonly lines: readonly string[];
}

/** The console is gone: the machine has ended. */
export class ConsoleClosedError extends Error {
  override name = "ConsoleClosedError";
}

/** Someone who waits for a line, and gets all up to it. */
interface Waiting {
  readonly isIt: (line: string) => boolean;
  readonly resolve: (lines: string[]) => void;
  readonly reject: (error: Error) => void;
}

/** One console. */
export class GuestShell {
  readonly #type: (text: string) => void;
  readonly #decoder = new TextDecoder();
  #line = "";
  #lines: string[] = [];
  #waiting: Waiting | null = null;
  #watch: { readonly text: string; readonly resolve: () => void } | null = null;
  #closed = false;

  /** `type` sends text to the guest. */
  constructor(type: (text: string) => void) {
    this.#type = type;
  }

  /** Takes what the guest writes. */
  take(byte: number): void {
    if (byte !== 0x0a) {
      this.#line += this.#decoder.decode(new Uint8Array([byte]), { stream: true });
      return;
    }
    const line = this.#line.replace(/\r$/, "");
    this.#line = "";
    this.#lines.push(line);
    if (line === this.#watch?.text) this.#watch.resolve();
    if (this.#waiting?.isIt(line)) this.#takeWaiting()?.resolve(this.#takeLines());
  }

  /** The machine has ended, and `why`: whoever waits is told. */
  close(why: string): void {
    this.#closed = true;
    this.#takeWaiting()?.reject(
      new ConsoleClosedError(`The machine has ended: ${why}; its console said\n${this.#tail()}`),
    );
  }

  /** Waits until user space is there. */
  async ready(): Promise<void> {
    await this.#until((line) => line.endsWith(READY));
  }

  /** Runs a command. One at a time. */
  async run(command: string): Promise<CommandResult> {
    this.#lines = [];
    const result = this.#until((line) => line.includes(STATUS));
    this.#type(`${command}\n`);
    const lines = await result;
    // What a command printed last may have no end of line.
    const [unfinished = "", status] = (lines.pop() ?? "").split(STATUS);
    return { status: Number(status), lines: unfinished === "" ? lines : [...lines, unfinished] };
  }

  /** What a command prints; it has to succeed. */
  async output(command: string): Promise<string> {
    const { status, lines } = await this.run(command);
    if (status !== 0) throw new Error(`"${command}" failed in the guest with ${status}: ${lines.join("\n")}`);
    return lines.join("\n");
  }

  /** Waits until a command that is running prints a line. */
  async line(text: string): Promise<void> {
    if (this.#lines.includes(text)) return;
    await new Promise<void>((resolve) => this.#watch = { text, resolve });
  }

  /** Types a command that is not expected to come back. */
  send(command: string): void {
    this.#type(`${command}\n`);
  }

  #until(isIt: (line: string) => boolean): Promise<string[]> {
    if (this.#waiting !== null) throw new Error("The shell in the guest is busy: one command at a time");
    if (this.#closed) throw new ConsoleClosedError("The machine has ended");
    return new Promise((resolve, reject) => this.#waiting = { isIt, resolve, reject });
  }

  #takeWaiting(): Waiting | null {
    const waiting = this.#waiting;
    this.#waiting = null;
    return waiting;
  }

  #takeLines(): string[] {
    const lines = this.#lines;
    this.#lines = [];
    return lines;
  }

  #tail(): string {
    return [...this.#lines, this.#line].slice(-20).join("\n");
  }
}
