import { assert, assertEquals, assertThrows } from "@std/assert";
import { Mappable, OsError } from "membacking";
import { Errno } from "../../ffi/os/os_error.ts";
import { outcome, uninterrupted } from "../../ffi/os/uninterrupted.ts";
import { HUGE_PAGE, hugePageTest } from "../support/require.ts";
import { underSignals } from "../support/signals.ts";

Deno.test("a call is made again for as long as a signal interrupts it, and for no other reason", () => {
  const results = [-Errno.EINTR, -Errno.EINTR, 7];
  assertEquals(uninterrupted("read", () => results.shift() ?? 0), 7);
  let calls = 0;
  const error = assertThrows(
    () => uninterrupted("open", () => (calls++, -Errno.ENOENT), (errno) => `errno ${errno}`),
    OsError,
  );
  assertEquals([error.syscall, error.code, calls], ["open", "ENOENT", 1]);
  assert(error.message.endsWith("errno 2"));
  assertEquals([outcome(5, 9), outcome(-1, 9), outcome(0, 9)], [5, -9, 0]);
});

hugePageTest("huge pages are allocated under a thousand signals a second", 32, async () => {
  await using signals = underSignals();
  while (signals.sent() < 10) await new Promise((resolve) => setTimeout(resolve, 1));
  const before = signals.sent();
  for (let i = 0; i < 8; i++) {
    using memory = Mappable.memfd("huge", 32 * HUGE_PAGE, { hugepageSize: HUGE_PAGE });
    memory.write(0, new Uint8Array(100).fill(i));
  }
  assert(signals.sent() > before);
});
