/**
 * Virtio over registers in memory.
 *
 * Specified in section 4.2 of the virtio specification.
 *
 * @module
 */

import { type GuestMemory, MembackingError } from "membacking";
import type { MmioDevice } from "../board.ts";
import { little, setLittle } from "../../pc/port_bus.ts";
import type { VirtioDevice, VirtioHost } from "./device.ts";
import { RingError, VirtQueue } from "./queue.ts";

const MAGIC = 0x7472_6976; // "virt"
const VERSION = 2;
const VENDOR = 0x424d_454d; // "MEMB"
const REGISTERS = 0x1000;
const MOST_DESCRIPTORS = 256;
const VERSION_1 = 1n << 32n;

const REGISTER = {
  magic: 0x000,
  version: 0x004,
  kind: 0x008,
  vendor: 0x00c,
  deviceFeatures: 0x010,
  deviceFeaturesSelect: 0x014,
  driverFeatures: 0x020,
  driverFeaturesSelect: 0x024,
  queueSelect: 0x030,
  queueMost: 0x034,
  queueSize: 0x038,
  queueReady: 0x044,
  notify: 0x050,
  interruptStatus: 0x060,
  interruptDone: 0x064,
  status: 0x070,
  descriptors: 0x080,
  available: 0x090,
  used: 0x0a0,
  generation: 0x0fc,
  configuration: 0x100,
} as const;

const STATUS = { driverOk: 4, needsReset: 0x40 } as const;
const INTERRUPT = { used: 1, configuration: 2 } as const;

/** What the driver has said of a queue. */
interface QueueSetup {
  size: number;
  addresses: { [register: number]: number };
  queue: VirtQueue | null;
}

/** A device at an address. */
export class VirtioMmio implements MmioDevice, VirtioHost {
  /** Where its registers are. */
  readonly gpa: number;
  /** How long they are, in bytes. */
  readonly length = REGISTERS;
  /** Its interrupt. */
  readonly irq: number;
  /** Guest memory. */
  readonly memory: GuestMemory;
  readonly #device: VirtioDevice;
  readonly #setIrq: (level: boolean) => void;
  readonly #onBroken: (error: unknown) => void;
  #queues: QueueSetup[] = [];
  #selected = { queue: 0, deviceFeatures: 0, driverFeatures: 0 };
  #features = 0n;
  #status = 0;
  #interrupts = 0;
  #generation = 0;

  /** `setIrq` sets its interrupt line; `onBroken` is told what a driver did wrong. */
  constructor(
    device: VirtioDevice,
    options: {
      gpa: number;
      irq: number;
      memory: GuestMemory;
      setIrq: (level: boolean) => void;
      onBroken: (error: unknown) => void;
    },
  ) {
    this.gpa = options.gpa;
    this.irq = options.irq;
    this.memory = options.memory;
    this.#device = device;
    this.#setIrq = options.setIrq;
    this.#onBroken = options.onBroken;
    this.#reset();
  }

  /** A queue that is set up. */
  queue(index: number): VirtQueue | null {
    return this.#queues[index]?.queue ?? null;
  }

  /** As `VirtioHost` says. */
  finished(queue: VirtQueue): void {
    if (queue.wantsInterrupt) this.#interrupt(INTERRUPT.used);
  }

  /** As `VirtioHost` says. */
  configurationChanged(): void {
    this.#generation = (this.#generation + 1) >>> 0;
    if ((this.#status & STATUS.driverOk) !== 0) this.#interrupt(INTERRUPT.configuration);
  }

  /** As `VirtioHost` says: a driver's mistake is one, and anything else is thrown. */
  broken(error: unknown): void {
    if (!(error instanceof RingError || error instanceof MembackingError || error instanceof RangeError)) throw error;
    this.#status |= STATUS.needsReset;
    this.#onBroken(error);
    this.#interrupt(INTERRUPT.configuration);
  }

  /** The guest reads a register, or configuration of any width. */
  read(offset: number, data: Uint8Array): void {
    if (offset < REGISTER.configuration) return setLittle(data, this.#read(offset));
    const { configuration } = this.#device;
    for (let i = 0; i < data.length; i++) data[i] = configuration[offset - REGISTER.configuration + i] ?? 0;
  }

  /** The guest writes one. */
  write(offset: number, data: Uint8Array): void {
    if (offset < REGISTER.configuration) this.#write(offset, little(data));
    else this.#device.configure?.(offset - REGISTER.configuration, data);
  }

  #read(register: number): number {
    switch (register) {
      case REGISTER.magic:
        return MAGIC;
      case REGISTER.version:
        return VERSION;
      case REGISTER.kind:
        return this.#device.kind;
      case REGISTER.vendor:
        return VENDOR;
      case REGISTER.deviceFeatures: {
        const features = this.#device.features | VERSION_1;
        return Number(BigInt.asUintN(32, features >> BigInt(32 * this.#selected.deviceFeatures)));
      }
      case REGISTER.queueMost:
        return this.#setup === undefined ? 0 : MOST_DESCRIPTORS;
      case REGISTER.queueReady:
        return this.#setup?.queue ? 1 : 0;
      case REGISTER.interruptStatus:
        return this.#interrupts;
      case REGISTER.status:
        return this.#status;
      case REGISTER.generation:
        return this.#generation;
      default:
        return 0;
    }
  }

  #write(register: number, value: number): void {
    switch (register) {
      case REGISTER.deviceFeaturesSelect:
        this.#selected.deviceFeatures = value & 1;
        return;
      case REGISTER.driverFeaturesSelect:
        this.#selected.driverFeatures = value & 1;
        return;
      case REGISTER.driverFeatures:
        this.#features |= BigInt(value) << BigInt(32 * this.#selected.driverFeatures);
        return;
      case REGISTER.queueSelect:
        this.#selected.queue = value;
        return;
      case REGISTER.queueSize:
        if (this.#setup !== undefined) this.#setup.size = value;
        return;
      case REGISTER.queueReady:
        if (this.#setup !== undefined) this.#setup.queue = value === 1 ? this.#open(this.#setup) : null;
        return;
      case REGISTER.notify:
        return this.#notified(value);
      case REGISTER.interruptDone:
        this.#interrupts &= ~value;
        return this.#setIrq(this.#interrupts !== 0);
      case REGISTER.status:
        return this.#setStatus(value);
      default:
        if (register >= REGISTER.descriptors && register < REGISTER.used + 8 && this.#setup !== undefined) {
          this.#setup.addresses[register] = value;
        }
    }
  }

  get #setup(): QueueSetup | undefined {
    return this.#queues[this.#selected.queue];
  }

  #open({ size, addresses }: QueueSetup): VirtQueue | null {
    const address = (low: number) => (addresses[low] ?? 0) + (addresses[low + 4] ?? 0) * 2 ** 32;
    if (size < 1 || size > MOST_DESCRIPTORS || (size & (size - 1)) !== 0) {
      this.broken(new RingError(`The driver wants a queue of ${size} descriptors`));
      return null;
    }
    return new VirtQueue(this.memory, {
      size,
      descriptors: address(REGISTER.descriptors),
      available: address(REGISTER.available),
      used: address(REGISTER.used),
    });
  }

  #notified(index: number): void {
    if ((this.#status & STATUS.driverOk) === 0 || this.queue(index) === null) return;
    try {
      this.#device.notified(index);
    } catch (error) {
      this.broken(error);
    }
  }

  #setStatus(value: number): void {
    if (value === 0) return this.#reset();
    const isReady = (value & ~this.#status & STATUS.driverOk) !== 0;
    this.#status = value | this.#status & STATUS.needsReset;
    if (isReady) this.#device.start(this, this.#features);
  }

  #reset(): void {
    this.#device.reset();
    this.#status = 0;
    this.#features = 0n;
    this.#interrupts = 0;
    this.#selected = { queue: 0, deviceFeatures: 0, driverFeatures: 0 };
    this.#queues = Array.from({ length: this.#device.queues }, () => ({ size: 0, addresses: {}, queue: null }));
    this.#setIrq(false);
  }

  #interrupt(why: number): void {
    this.#interrupts |= why;
    this.#setIrq(true);
  }
}
