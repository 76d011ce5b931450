/**
 * Devices whose work is done by other processes (vhost-user back ends): the front end, and memory that follows the map.
 *
 * The README beside this file has a disk in 60 lines, and tells which back ends were tried and what each can do.
 *
 * @module
 */

export { VhostUserError, type VhostUserErrorKind } from "./errors.ts";
export { VhostUserFrontend } from "./frontend.ts";
export { VhostUserMemory, type VhostUserRegion } from "./memory.ts";
export type { VhostUserOptions, VhostUserState } from "./options.ts";
export { ProtocolFeature } from "./protocol.ts";
export type { ShmemWindow } from "./shmem.ts";
export type { VringOptions } from "./vring.ts";
export type { VringState } from "./vrings.ts";
