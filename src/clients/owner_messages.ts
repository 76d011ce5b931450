import type { OwnerMessage } from "../serving/protocol.ts";

/** A message of the owner's, `undefined` for anything else: whoever has the other end of a port can send anything. */
export function readOwnerMessage(data: unknown): OwnerMessage | undefined {
  if (typeof data !== "object" || data === null) return undefined;
  const { kind, id, answer } = data as { kind?: unknown; id?: unknown; answer?: unknown };
  const isRight = typeof kind === "string" &&
    (kind !== "answer" || (typeof id === "number" && typeof answer === "object" && answer !== null));
  // SAFETY: a client trusts its owner in what the owner says; it must not fall over what is none of that.
  return isRight ? data as OwnerMessage : undefined;
}
