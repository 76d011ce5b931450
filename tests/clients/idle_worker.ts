/**
 * A Worker that says which thread it is, and does nothing.
 *
 * @module
 */

import { currentThreadId } from "membacking/kvm";

(globalThis as unknown as { postMessage(message: unknown): void }).postMessage(currentThreadId());
