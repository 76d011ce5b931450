import { MembackingError } from "../core/errors.ts";

/** The owner of the region manager did not answer in time. */
export class RequestTimeoutError extends MembackingError {
  /** The class name, which is also what a stack trace shows. */
  override name = "RequestTimeoutError";
  /** How long was waited, in milliseconds. */
  readonly timeout: number;
  /**
   * Whether the owner had begun with the request. If not, it has been withdrawn and will never be carried out. If so,
   * it is carried out or refused, and nobody hears of it.
   */
  readonly begun: boolean;

  /** Builds the error for the request named. */
  constructor(what: string, timeout: number, begun: boolean) {
    super(
      `The owner of the region manager did not answer "${what}" within ${timeout} ms, ` +
        (begun ? "and may still be carrying it out" : "and the request was withdrawn"),
    );
    this.timeout = timeout;
    this.begun = begun;
  }
}
