/**
 * Prints the demo and keeps count of what it claims.
 *
 * @module
 */

import { drawMemoryMap, type InspectNode } from "membacking";

const COLUMNS = 100;
const color = Deno.stdout.isTerminal() && !Deno.noColor;
let afterGap = false;

/** How many claims were made so far, and how many of them did not hold. */
export const claims = { made: 0, broken: 0 };

/** A scene begins. */
export function scene(title: string): void {
  gap();
  print(styled("1", title));
}

/** A sentence of the narrator. */
export function say(text: string, indent = "  "): void {
  for (const line of wrapped(text, COLUMNS - indent.length)) print(indent + line);
}

/** Says what happened, and whether it is what had to happen. */
export function claim(what: string, got: string, want: string): void {
  claims.made++;
  if (got === want) return print(`    ${styled("32", "✓")} ${what.padEnd(50)} ${got}`);
  claims.broken++;
  print(`    ${styled("31", "✗")} ${what.padEnd(50)} ${got} (it should be ${want})`);
}

/** The memory map as it is now. */
export function picture(map: InspectNode): void {
  gap();
  print(drawMemoryMap(map, { columns: COLUMNS - 2, color }).replaceAll(/^(?=.)/gm, "  "));
  gap();
}

/** What has to be seen before anything else. */
export function banner(sentences: readonly string[]): void {
  const lines = sentences.flatMap((sentence) => wrapped(sentence, COLUMNS - 4));
  const width = Math.max(...lines.map((line) => line.length));
  gap();
  print(styled("33", `┏━${"━".repeat(width)}━┓`));
  for (const line of lines) print(styled("33", `┃ ${line.padEnd(width)} ┃`));
  print(styled("33", `┗━${"━".repeat(width)}━┛`));
  gap();
}

/** An empty line, unless there is one. */
export function gap(): void {
  if (!afterGap) console.log();
  afterGap = true;
}

function wrapped(text: string, width: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(" ")) {
    const line = lines.at(-1);
    if (line !== undefined && line.length + 1 + word.length <= width) lines[lines.length - 1] = `${line} ${word}`;
    else lines.push(word);
  }
  return lines;
}

function print(text: string): void {
  console.log(text);
  afterGap = false;
}

function styled(sgr: string, text: string): string {
  return color ? `\x1b[${sgr}m${text}\x1b[0m` : text;
}
