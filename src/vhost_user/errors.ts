import { MembackingError } from "../core/errors.ts";

/**
 * Why something between front end and back end did not work.
 *
 * - `"refused"`: the back end answered that it could not do it. The connection goes on.
 * - `"unsupported"`: the back end has no such feature, or not one it was asked for. Nothing was sent.
 * - `"deadline"`: it did not answer in time. It is cut off.
 * - `"protocol"`: it said something that makes no sense. It is cut off.
 * - `"disconnected"`: it is gone.
 * - `"hung"`: it was cut off, is still there, and may still use memory that was to be taken away from it.
 */
export type VhostUserErrorKind = "refused" | "unsupported" | "deadline" | "protocol" | "disconnected" | "hung";

/** Something between front end and back end did not work. */
export class VhostUserError extends MembackingError {
  /** The class name, which is also what a stack trace shows. */
  override name = "VhostUserError";
  /** What went wrong. */
  readonly kind: VhostUserErrorKind;
  /** The request it was about, under the specification's name, such as `"ADD_MEM_REG"`; `""` if it was none. */
  readonly request: string;

  /** Builds the error. */
  constructor(kind: VhostUserErrorKind, request: string, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.kind = kind;
    this.request = request;
  }
}
