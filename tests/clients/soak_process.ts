/**
 * A process of the soak test: soak_process.ts FD START
 *
 * @module
 */

import { ProcessClient } from "membacking";
import type { SoakStart } from "./soak_layout.ts";
import { soak } from "./soaker.ts";

const [fd, json = ""] = Deno.args;
const start: SoakStart = JSON.parse(json);
console.log(JSON.stringify(await soak(await ProcessClient.connect(Number(fd)), start)));
