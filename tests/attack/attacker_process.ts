/**
 * A process that uses memory as a client until somebody kills it: `attacker_process.ts FD SEED`.
 *
 * @module
 */

import { ProcessClient } from "membacking";
import { clientRound } from "./client_round.ts";
import { Random } from "./random.ts";

const PAGE = 0x1000;
const random = new Random(Number(Deno.args[1]));
const client = await ProcessClient.connect(Number(Deno.args[0]));
const file = await client.memfd("process", 16 * PAGE);
while (true) await clientRound(client, "process", file, random);
