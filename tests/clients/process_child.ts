/**
 * The process of a `RemoteProcess`: evaluates what it is told to, line by line, with a client at hand.
 *
 * @module
 */

import * as membacking from "membacking";
import { libc } from "../../ffi/os/libc.ts";
import { describe, type RemoteJob } from "./remote.ts";

const fd = Number(Deno.args[0]);
const kept: Record<string, unknown> = {};
let client: membacking.ProcessClient | undefined;

/** Connects, or connects again. */
async function connect(): Promise<membacking.ProcessClient> {
  return client = await membacking.ProcessClient.connect(fd);
}

async function run({ code, names, values }: RemoteJob): Promise<unknown> {
  try {
    const context = { ...membacking, client, connect, kept, fd, sys: libc().sys };
    const body = `return (async (${names.join(", ")}) => {${code}})(...values);`;
    const act = new Function(...Object.keys(context), "values", body);
    return { value: await act(...Object.values(context), values) ?? null };
  } catch (error) {
    return { error: describe(error) };
  }
}

if (Deno.args[1] !== "later") await connect();
console.log("ready");
let rest = "";
for await (const chunk of Deno.stdin.readable.pipeThrough(new TextDecoderStream())) {
  const lines = (rest + chunk).split("\n");
  rest = lines.pop() ?? "";
  for (const line of lines) console.log(JSON.stringify(await run(JSON.parse(line))));
}
