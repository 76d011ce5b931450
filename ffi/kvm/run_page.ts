/**
 * The page a vCPU shares with its VMM (`struct kvm_run`), and the exits read from it.
 *
 * Why it is safe: it looks at the shared mapping through typed arrays of the mapping's length, which check bounds; what
 * the page says about where a port's data lie is used as an offset into the same arrays, and checked. Disposing revokes
 * them.
 *
 * @module
 */

import { MembackingError } from "../../src/core/errors.ts";
import { hex } from "../../src/core/hex.ts";
import { FileMapping } from "../os/address_space.ts";
import { PROT_READ, PROT_WRITE } from "../os/mman.ts";
import { KVM_EXIT_IO_OUT, KvmExitReason } from "./constants.ts";
import { IoExit, MmioExit } from "./data_exits.ts";
import type { KvmDirtyRingFullExit, KvmExit, KvmFaultExit, KvmHltExit, KvmInterruptedExit } from "./exits.ts";
import { RUN } from "./layout.ts";

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

const HLT: KvmHltExit = Object.freeze({ kind: "hlt" });
/** The exit of a vCPU whose ring of written pages is full. */
export const RING_FULL: KvmDirtyRingFullExit = Object.freeze({ kind: "dirty-ring-full" });
const INTERRUPTED: KvmInterruptedExit = Object.freeze({ kind: "interrupted" });
const NOTHING = new Uint8Array(0);
const MAX_NDATA = 16;

/** How much of a vCPU is mapped, in bytes: `struct kvm_run`, and the data of ports. */
export const RUN_AREA = 0x2000;

/** The shared page of one vCPU. */
export class RunPage implements Disposable {
  #mapping: FileMapping;
  #bytes: Uint8Array<ArrayBuffer>;
  #words: Uint32Array<ArrayBuffer>;
  // Reused, one per kind that a VMM sees by the thousand, and one view per length of data.
  #io = new IoExit();
  #mmio = new MmioExit();
  #fault: Mutable<KvmFaultExit> = { kind: "fault", gpa: undefined };
  #mmioData: Uint8Array<ArrayBuffer>[] = [];
  #ioData = new Map<number, Uint8Array<ArrayBuffer>>();
  #ioDataAt = -1;

  /**
   * Maps the page of the vCPU `fd`, and the one behind it, where the data of ports lie. That is what every KVM has for
   * x86, so no size is asked of anybody; what else KVM_GET_VCPU_MMAP_SIZE counts (a ring of MMIO writes) is not used.
   *
   * @throws {OsError} If `fd` cannot be mapped, as when it is no vCPU.
   */
  constructor(fd: number) {
    this.#mapping = new FileMapping(fd, 0, RUN_AREA, PROT_READ | PROT_WRITE);
    const buffer = this.#mapping.bytes;
    this.#bytes = new Uint8Array(buffer);
    this.#words = new Uint32Array(buffer);
  }

  /** Where it is mapped. */
  get address(): number {
    return this.#mapping.address;
  }

  /** Whether the next run returns before it enters the guest. */
  get immediateExit(): boolean {
    return this.#bytes[RUN.immediate_exit] !== 0;
  }

  set immediateExit(on: boolean) {
    this.#bytes[RUN.immediate_exit] = on ? 1 : 0;
  }

  /** Whether the vCPU comes out as soon as it can take an interrupt. */
  get requestInterruptWindow(): boolean {
    return this.#bytes[RUN.request_interrupt_window] !== 0;
  }

  set requestInterruptWindow(on: boolean) {
    this.#bytes[RUN.request_interrupt_window] = on ? 1 : 0;
  }

  /** The task priority that the next run begins with, where the interrupt controller is not in the kernel. */
  set cr8(value: bigint) {
    this.#words[RUN.cr8 >>> 2] = Number(value & 0xffff_ffffn);
    this.#words[(RUN.cr8 >>> 2) + 1] = Number(value >> 32n);
  }

  /** Whether an interrupt can be injected now. */
  get readyForInterrupt(): boolean {
    return this.#bytes[RUN.ready_for_interrupt_injection] !== 0;
  }

  /** What `KVM_RUN` returned for. */
  exit(): KvmExit {
    const reason = this.#word(RUN.exit_reason);
    switch (reason) {
      case KvmExitReason.IO:
        return this.#ioExit();
      case KvmExitReason.MMIO:
        return this.#mmioExit();
      case KvmExitReason.HLT:
        return HLT;
      case KvmExitReason.INTR:
        return INTERRUPTED;
      case KvmExitReason.SHUTDOWN:
        return { kind: "shutdown" };
      case KvmExitReason.IRQ_WINDOW_OPEN:
        return { kind: "irq-window-open" };
      case KvmExitReason.FAIL_ENTRY:
        return { kind: "fail-entry", reason: this.#quad(RUN.fail_entry_hardware_entry_failure_reason) };
      case KvmExitReason.INTERNAL_ERROR:
        return {
          kind: "internal-error",
          suberror: this.#word(RUN.internal_suberror),
          data: this.#quads(RUN.internal_data, this.#word(RUN.internal_ndata)),
        };
      case KvmExitReason.SYSTEM_EVENT:
        return {
          kind: "system-event",
          type: this.#word(RUN.system_event_type),
          data: this.#quads(RUN.system_event_data, this.#word(RUN.system_event_ndata)),
        };
      case KvmExitReason.DIRTY_RING_FULL:
        return RING_FULL;
      default:
        return { kind: "unknown", reason };
    }
  }

  /** What `KVM_RUN` failed with EINTR for. */
  interrupted(): KvmExit {
    return INTERRUPTED;
  }

  /** What `KVM_RUN` failed with EFAULT for. */
  fault(): KvmExit {
    const known = this.#word(RUN.exit_reason) === KvmExitReason.MEMORY_FAULT;
    this.#fault.gpa = known ? this.#address(RUN.memory_fault_gpa) : undefined;
    return this.#fault;
  }

  /** Unmaps the page. Every `data` handed out is empty from now on. */
  [Symbol.dispose](): void {
    this.#mapping[Symbol.dispose]();
  }

  #ioExit(): KvmExit {
    const exit: IoExit = this.#io;
    const head = this.#word(RUN.io_direction); // direction, size, port: a byte, a byte and two
    exit.direction = (head & 0xff) === KVM_EXIT_IO_OUT ? "out" : "in";
    exit.size = (head >>> 8) & 0xff;
    exit.port = head >>> 16;
    exit.count = this.#word(RUN.io_count);
    const at = this.#word(RUN.io_data_offset);
    if (at !== this.#ioDataAt) {
      this.#ioDataAt = at;
      this.#ioData.clear();
    }
    const length = exit.size * exit.count;
    if (at + length > RUN_AREA) throw new MembackingError(`KVM's run page is damaged: ${length} bytes at ${hex(at)}`);
    let data = this.#ioData.get(length);
    if (data === undefined) {
      data = new Uint8Array(this.#bytes.buffer, at, length);
      this.#ioData.set(length, data);
    }
    exit.data = data;
    return exit;
  }

  #mmioExit(): KvmExit {
    const exit = this.#mmio;
    exit.gpa = this.#address(RUN.mmio_phys_addr);
    exit.length = this.#word(RUN.mmio_len);
    exit.isWrite = this.#bytes[RUN.mmio_is_write] !== 0;
    if (this.#mmioData.length === 0) {
      const { buffer } = this.#bytes;
      this.#mmioData = Array.from({ length: 9 }, (_, length) => new Uint8Array(buffer, RUN.mmio_data, length));
    }
    exit.data = this.#mmioData[exit.length] ?? NOTHING;
    return exit;
  }

  // A word past the end of the array cannot be asked for: offsets are constants inside the first page.
  #word(offset: number): number {
    return this.#words[offset >>> 2] ?? 0;
  }

  /** A 64-bit number that is a guest-physical address, so that a double holds it. */
  #address(offset: number): number {
    return this.#word(offset) + this.#word(offset + 4) * 2 ** 32;
  }

  #quad(offset: number): bigint {
    return BigInt(this.#word(offset)) | (BigInt(this.#word(offset + 4)) << 32n);
  }

  #quads(offset: number, count: number): bigint[] {
    return Array.from({ length: Math.min(count, MAX_NDATA) }, (_, i) => this.#quad(offset + 8 * i));
  }
}
