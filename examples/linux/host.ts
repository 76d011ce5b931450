/**
 * Whether the KVM of this machine can run an ordinary Linux kernel.
 *
 * @module
 */

import { Kvm } from "membacking/kvm";
import { OsError } from "membacking";
import { exists } from "../debian/cache.ts";

/** Why it cannot, or `null`. */
export function whyNoLinux(): string | null {
  // It runs a guest's kernel in an emulator that does not know all instructions of one.
  if (exists("/sys/module/kvm_pvm")) return "the KVM of this machine is kvm_pvm, which cannot run an ordinary kernel";
  try {
    Kvm.open()[Symbol.dispose]();
    return null;
  } catch (error) {
    if (!(error instanceof OsError)) throw error;
    return `there is no KVM here: ${error.message}`;
  }
}
