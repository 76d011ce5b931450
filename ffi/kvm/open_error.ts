/**
 * Why /dev/kvm could not be opened, and what to do about it.
 *
 * Why it is safe: it asks the kernel about a path, into a buffer of the size it fills.
 *
 * @module
 */

import { STATX, STATX_BASIC_STATS } from "../files/open_file.ts";
import { cString, libc } from "../os/libc.ts";
import { Errno, OsError } from "../os/os_error.ts";
import { readTextFile } from "../os/proc_file.ts";

/** Where every Linux has it. */
export const DEVICE = "/dev/kvm";

/** What a device allows whom. */
export interface DeviceMode {
  /** The permission bits. */
  readonly mode: number;
  /** The number of its owner. */
  readonly uid: number;
  /** The name of its group, or its number where it has none. */
  readonly group: string;
}

/** The error of opening `path`, which failed with `code`. */
export function openError(path: string, code: number): OsError {
  return new OsError("open", code, `"${path}": ${openAdvice(path, code, () => modeOf(path))}`);
}

/** What to do when opening `path` failed with `code`. */
export function openAdvice(path: string, code: number, mode: () => DeviceMode | undefined): string {
  switch (code) {
    case Errno.ENOENT:
    case Errno.ENXIO:
    case Errno.ENODEV:
      return path === DEVICE
        ? "load the module kvm_intel or kvm_amd, and allow virtualization in the firmware or the enclosing hypervisor"
        : `there is no such device, KVM is usually ${DEVICE}`;
    case Errno.EACCES:
    case Errno.EPERM:
      return permissionAdvice(mode());
    default:
      return "it cannot be opened";
  }
}

const AT_FDCWD = -100;
const GROUP = 0o060;
const OTHERS = 0o006;

function permissionAdvice(device: DeviceMode | undefined): string {
  if (device === undefined) return "this user may not look it up, see the permissions of the directories it is in";
  const { mode, uid, group } = device;
  const octal = `0${(mode & 0o777).toString(8).padStart(3, "0")}`;
  if ((mode & OTHERS) === OTHERS) {
    return `its mode ${octal} lets everybody use it, so a container's device rules or a security module forbid it`;
  }
  if ((mode & GROUP) === GROUP) return `add the user to the group ${group}, which may use it, and log in again`;
  return `its mode ${octal} lets only its owner (user ${uid}) use it: run as that user, or let a group use it, ` +
    `as by a udev rule with GROUP="kvm" and MODE="0660"`;
}

function modeOf(path: string): DeviceMode | undefined {
  const bytes = new Uint8Array(STATX.size);
  // SAFETY: statx fills one struct statx, for which there is room.
  if (libc().sys.statx(AT_FDCWD, cString(path), 0, STATX_BASIC_STATS, bytes) === -1) return undefined;
  const view = new DataView(bytes.buffer);
  const gid = view.getUint32(STATX.stx_gid, true);
  return {
    mode: view.getUint16(STATX.stx_mode, true),
    uid: view.getUint32(STATX.stx_uid, true),
    group: groupName(gid),
  };
}

function groupName(gid: number): string {
  const entry = (readTextFile("/etc/group") ?? "").split("\n").find((line) => line.split(":")[2] === String(gid));
  return entry?.split(":")[0] ?? `number ${gid}`;
}
