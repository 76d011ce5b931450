import { MembackingError } from "../core/errors.ts";

/** A client said what no client says. */
export class ProtocolError extends MembackingError {
  /** The class name, which is also what a stack trace shows. */
  override name = "ProtocolError";
}
