/**
 * Programs of Debian, run to their end.
 *
 * @module
 */

/** What is needed from Debian cannot be had, and the message says why. */
export class PackageError extends Error {
  override name = "PackageError";
}

/** Runs a program and returns what it printed; a failure has what it said about it. */
export function run(
  program: string,
  args: readonly string[],
  { cwd, env = {} }: { cwd?: string; env?: Readonly<Record<string, string>> } = {},
): string {
  let output: Deno.CommandOutput;
  try {
    output = new Deno.Command(program, {
      args: [...args],
      ...(cwd !== undefined && { cwd }),
      env: { LC_ALL: "C", DEBIAN_FRONTEND: "noninteractive", ...env },
    }).outputSync();
  } catch (cause) {
    if (!(cause instanceof Deno.errors.NotFound)) throw cause;
    throw new PackageError(`There is no "${program}" on this machine, which has to be a Debian`, { cause });
  }
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  if (!output.success) {
    const said = text(output.stderr).trim().split("\n").slice(-5).join("\n");
    throw new PackageError(`"${[program, ...args].join(" ")}" failed with status ${output.code}: ${said}`);
  }
  return text(output.stdout);
}
