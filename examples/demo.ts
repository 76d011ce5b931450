/**
 * Switches memory under a guest, and lets the guest tell what it sees.
 *
 * `deno task demo` needs --allow-ffi and nothing else. With `--map` it is about the memory of a PC; with `--no-kvm` it
 * shows what it shows where there is no KVM. With `--inspect`, which needs --allow-net, it can be watched in a browser.
 *
 * @module
 */

import { type GuestMemoryManager, OsError, type RegionManager } from "membacking";
import { type Guest, KvmGuest } from "./demo/guest.ts";
import { showPc } from "./demo/pc.ts";
import { banner, claims, gap, say } from "./demo/stage.ts";
import { StandIn } from "./demo/stand_in.ts";
import { showSwitching } from "./demo/switching.ts";
import { INSPECT, inspect, linger } from "./inspect.ts";

const OPTIONS = ["--map", "--no-kvm", INSPECT];

const unknown = Deno.args.find((option) => !OPTIONS.includes(option));
if (unknown !== undefined) {
  console.error(`There is no option "${unknown}", only ${OPTIONS.slice(0, -1).join(", ")} and ${OPTIONS.at(-1)}`);
  Deno.exit(2);
}
const isMap = Deno.args.includes("--map");
using inspectors = new DisposableStack();
const onReady = async (memory: GuestMemoryManager | RegionManager) => {
  if (Deno.args.includes(INSPECT)) inspectors.use(await inspect(memory, "membacking demo", say));
};

say(`membacking demo: ${isMap ? "the memory of a PC" : "memory is switched under a guest"}`, "");
using guest = openGuest();
gap();
say(
  `The ${guest.who} loads or stores four bytes wherever we tell it to, and says what it got. In between we change ` +
    "the memory map. A ✓ says that what happened is what had to happen.",
);
await (isMap ? showPc(guest, onReady) : showSwitching(guest, onReady));

gap();
const ran = guest instanceof KvmGuest ? "" : " NO GUEST RAN, see the top.";
say(`${claims.made} claims checked, ${claims.broken} broken.${ran}`, "");
if (claims.broken > 0) Deno.exitCode = 1;
if (Deno.args.includes(INSPECT)) await linger(say);

/** Opens a guest in a virtual machine; where there is no KVM, something that stands in for it. */
function openGuest(): Guest {
  const standIn = "A recording partition stands in for the virtual machine, the host for the guest.";
  try {
    if (!Deno.args.includes("--no-kvm")) return new KvmGuest();
    banner(["NO GUEST RUNS: --no-kvm was given.", standIn]);
  } catch (error) {
    if (!(error instanceof OsError)) throw error;
    banner(["NO GUEST RUNS: this machine has no KVM that can be used.", error.message, standIn]);
  }
  return new StandIn();
}
