import { currentThread, isAlive } from "../../ffi/os/thread.ts";
import type { MemoryLocks } from "../memory/memory_locks.ts";
import type { Reader } from "./gate.ts";
import { LockMirror, newLockTable } from "./lock_slots.ts";
import { ThreadSink } from "./page_sinks.ts";
import type { Hello } from "./protocol.ts";
import type { Admitted } from "./session.ts";
import { LINE, ThreadWords } from "./shared_words.ts";

/** Where guest memory is. */
export interface ServedMemory {
  /** The host address of GPA 0, `null` where guest memory cannot be looked at. */
  readonly base: number | null;
  /** Where it ends, in bytes. */
  readonly length: number;
}

/** Lets in clients in other threads of this process. */
export class ThreadClients {
  readonly #memory: ServedMemory;
  readonly #locks: MemoryLocks;
  readonly #bell: SharedArrayBuffer;
  readonly #thread = currentThread();
  /** The memory map as they see it. */
  readonly sink: ThreadSink = new ThreadSink();

  constructor(memory: ServedMemory, locks: MemoryLocks, bell: SharedArrayBuffer) {
    this.#memory = memory;
    this.#locks = locks;
    this.#bell = bell;
  }

  /** Makes what one client needs. */
  admit({ thread }: Hello, deadline: number): Admitted {
    const { base, length } = this.#memory;
    const line = new ThreadWords(LINE.words);
    const table = newLockTable();
    const reader: Reader = { line, deadline, isAlive: () => isAlive(thread), gone: false };
    return {
      reader,
      mirror: new LockMirror(line.words, table, length, this.#locks),
      welcome: {
        kind: "welcome",
        owner: this.#thread,
        base,
        length,
        line: line.words.buffer,
        locks: table,
        nodes: this.sink.nodes,
        rows: this.sink.rows,
        bell: this.#bell,
      },
      fds: [],
      [Symbol.dispose]() {},
    };
  }
}
