/**
 * One change of a back end's memory table, carried out as a whole or not at all.
 *
 * @module
 */

import type { OpenFile } from "../../ffi/files/open_file.ts";
import { VhostUserError } from "./errors.ts";
import { type BackendLink, refusalIn } from "./link.ts";
import { encodeMemReg, encodeMemTable, type WireRegion } from "./message.ts";
import { entryAt, type Run, type TableChange } from "./memory_table.ts";
import type { Outgoing } from "./vring.ts";

/** What is needed to put a table into messages. */
export interface TableContext {
  /** The table before the change. */
  readonly before: readonly Run<OpenFile>[];
  /** The user address of GPA 0. */
  readonly userBase: number;
  /** The descriptor of a file in the table. */
  readonly fdOf: (file: OpenFile) => number;
}

/**
 * Has the back end change its table. Blocks until it has acknowledged all of it. Vrings whose memory goes, or for a
 * moment might be gone, are left alone by the back end meanwhile.
 *
 * A back end that goes while it is at it does not need the table any more: that is no failure, and the connection says
 * so.
 *
 * @throws {VhostUserError} `"refused"`: it has the table it had. Anything else: it is cut off, and may have either.
 */
export function exchangeTable(link: BackendLink, change: TableChange<OpenFile>, context: TableContext): void {
  const { connection } = link;
  try {
    link.suspend(
      link.vrings.in("running").filter(({ parts }) =>
        change.disturbs && link.rules.kind === "slots" ||
        parts.some(({ gpa, length }) => entryAt(change.table, gpa, length) === undefined)
      ),
    );
    // Back ends look for all their vrings whenever a region is added, suspended or not, and give up if one is missing.
    const { table, removed, disturbs } = change;
    const ordered = { table, removed, disturbs, added: vringsFirst(link, change.added) };
    const refusal = connection.state === "open" ? send(link, ordered, context) : null;
    if (refusal !== null) {
      const failed = putBack(link, ordered, context, refusal);
      if (failed === null) throw refusal.error;
      const message = `The back end does not take its table back: ${failed.message}`;
      connection.cutOff(new VhostUserError("protocol", failed.request, message, { cause: failed }));
    }
  } catch (error) {
    // Sending to a back end that has gone fails, and does not matter.
    if (connection.state !== "gone") throw error;
  }
  if (connection.state === "cut off") throw connection.error ?? new Error("A connection that was cut off says why");
}

/** A change that was refused, and what of it had been carried out. */
interface Refusal {
  readonly error: VhostUserError;
  readonly done: readonly boolean[];
}

function send(link: BackendLink, change: TableChange<OpenFile>, context: TableContext): Refusal | null {
  const { connection } = link;
  const messages = link.rules.kind === "whole"
    ? [whole(change.table, context)]
    : [...change.removed.map((entry) => remove(entry, context)), ...change.added.map((entry) => add(entry, context))];
  const replies = connection.tellAll(messages);
  connection.waitFor(replies);
  if (connection.state !== "open") return null;
  const error = refusalIn(replies);
  return error === null ? null : { error, done: replies.map((reply) => refusalIn([reply]) === null) };
}

/** Puts the table back as it was. @returns What refused that, `null` if nothing did. */
function putBack(
  link: BackendLink,
  { removed, added }: TableChange<OpenFile>,
  context: TableContext,
  { done }: Refusal,
): VhostUserError | null {
  const { connection } = link;
  const messages = link.rules.kind === "whole" ? [whole(context.before, context)] : [
    ...added.filter((_, i) => done[removed.length + i]).map((entry) => remove(entry, context)),
    ...vringsFirst(link, removed.filter((_, i) => done[i])).map((entry) => add(entry, context)),
  ];
  const replies = connection.tellAll(messages);
  connection.waitFor(replies);
  return connection.state === "open" ? refusalIn(replies) : null;
}

/** The entries, those first where vrings are. */
function vringsFirst(link: BackendLink, entries: readonly Run<OpenFile>[]): Run<OpenFile>[] {
  const parts = [...link.vrings].flatMap((vring) => vring.parts);
  const rank = ({ start, end }: Run<OpenFile>) => parts.some(({ gpa }) => start <= gpa && gpa < end) ? 0 : 1;
  return [...entries].sort((a, b) => rank(a) - rank(b));
}

function whole(entries: readonly Run<OpenFile>[], context: TableContext): Outgoing {
  const payload = encodeMemTable(entries.map((entry) => regionOf(entry, context)));
  return { request: "SET_MEM_TABLE", payload, fds: entries.map(({ file }) => context.fdOf(file)) };
}

function add(entry: Run<OpenFile>, context: TableContext): Outgoing {
  const payload = encodeMemReg(regionOf(entry, context));
  return { request: "ADD_MEM_REG", payload, fds: [context.fdOf(entry.file)] };
}

function remove(entry: Run<OpenFile>, context: TableContext): Outgoing {
  return { request: "REM_MEM_REG", payload: encodeMemReg(regionOf(entry, context)), fds: [] };
}

function regionOf({ start, end, fileOffset }: Run<OpenFile>, { userBase }: TableContext): WireRegion {
  return { gpa: start, length: end - start, userAddress: userBase + start, fileOffset };
}
