/**
 * Small guests for tests, benchmarks and examples, assembled here: real mode where simple is enough, long mode at user
 * privilege where the guest has to run at full speed, and a Worker to run a vCPU in.
 *
 * @module
 */

export { type IdentityRange, type LongModeGuest, pageTables, startLongMode } from "./long_mode.ts";
export { type Condition, LongModeCode, type Register } from "./long_mode_code.ts";
export { pollForever, type PollOptions, readEach, REPORT_PORT, touchForever, writeEach } from "./programs.ts";
export { RealModeCode, startRealMode } from "./real_mode.ts";
export type { MmioAccess, PortWrite, VcpuReport } from "./vcpu_protocol.ts";
export { STOP_PORT, VcpuThread } from "./vcpu_thread.ts";
