/** Something is missing or wrong around the machine, and the message says what to do about it. */
export class SetupError extends Error {
  override name = "SetupError";
}
