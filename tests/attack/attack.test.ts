import { assertEquals } from "@std/assert";
import { noKvm, testUnless, tooSlow } from "../support/require.ts";
import { FAMILIES } from "./families/mod.ts";
import { attack } from "./run.ts";

/** How long the attack of the ordinary tests is; `deno task attack` takes as long as it is told. */
const SECONDS = Number(Deno.env.get("ATTACK_SECONDS") ?? 60);

function attackWith(families: typeof FAMILIES): (t: Deno.TestContext) => Promise<void> {
  return async () => {
    const seed = crypto.getRandomValues(new Uint32Array(1))[0] ?? 0;
    const results = await attack(families, SECONDS * families.length / FAMILIES.length, seed, () => {});
    const wrong = results.filter(({ ending }) => ending !== "clean");
    assertEquals(
      wrong.map(({ family, seed, ending, detail }) =>
        `${ending}: deno task attack --family ${family} --seed ${seed}\n${detail}`
      ),
      [],
    );
  };
}

const [withKvm, without] = [true, false].map((needs) => FAMILIES.filter(({ needsKvm = false }) => needsKvm === needs));
testUnless(
  tooSlow,
  "nothing that a caller, a peer or the host does crashes, hangs, leaks or changes other memory",
  attackWith(without ?? []),
);
testUnless(
  tooSlow ?? noKvm,
  "nothing that is done to virtual machines crashes, hangs or leaks",
  attackWith(withKvm ?? []),
);
