/**
 * One change of a back end's memory table, carried out as a whole or not at all.
 *
 * @module
 */

import type { OpenFile } from "../../ffi/files/open_file.ts";
import type { Connection } from "./connection.ts";
import { VhostUserError } from "./errors.ts";
import { type BackendLink, refusalIn } from "./link.ts";
import { encodeMemReg, encodeMemTable, type WireRegion } from "./message.ts";
import { entryAt, type Run, type TableChange } from "./memory_table.ts";
import { MAX_TABLE_REGIONS } from "./protocol.ts";
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

/** A message, and the one that takes back what it does; put together when they are sent. */
interface Move {
  out(): Outgoing;
  back(): Outgoing;
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
    const ways = waysOf(link, change, context);
    link.suspend(
      link.vrings.in("running").filter(({ parts }) =>
        change.disturbs && link.rules.kind === "slots" ||
        parts.some(({ gpa, length }) => entryAt(change.table, gpa, length) === undefined)
      ),
    );
    let refusal: VhostUserError | null = null;
    for (const moves of ways) {
      refusal = connection.state === "open" ? move(connection, moves) : null;
      if (refusal === null) break;
    }
    if (refusal !== null) throw refusal;
  } catch (error) {
    // Sending to a back end that has gone fails, and does not matter.
    if (connection.state !== "gone") throw error;
  }
  if (connection.state === "cut off") throw connection.error ?? new Error("A connection that was cut off says why");
}

/** The ways there are to make a change, to be tried in this order. */
function waysOf(link: BackendLink, change: TableChange<OpenFile>, context: TableContext): Move[][] {
  const { table, removed, added } = change;
  const { before } = context;
  const replaced: Move = { out: () => whole(table, context), back: () => whole(before, context) };
  if (link.rules.kind === "whole") return [[replaced]];

  const removals = removed.map((entry): Move => ({
    out: () => remove(entry, context),
    back: () => add(entry, context),
  }));
  const additions = added.map((entry): Move => ({
    out: () => add(entry, context),
    back: () => remove(entry, context),
  }));
  const usual = [...removals, ...additions];
  // Back ends (libvhost-user) look for all their vrings whenever a region is added, and end the connection if one is not
  // in what they had before. So an entry with vrings is not removed before its parts are added: all is replaced at once,
  // or for a moment both are there, which other back ends refuse.
  const moved = [...link.vrings].flatMap(({ parts }) => parts).filter(({ gpa, length }) =>
    entryAt(removed, gpa, length) !== undefined && entryAt(table, gpa, length) !== undefined
  );
  if (moved.length === 0) return [usual];
  if (Math.max(table.length, before.length) <= MAX_TABLE_REGIONS) return [[replaced], usual];
  return [[...additions, ...removals], usual];
}

/** Makes all moves, or none. @returns What was refused, `null` if nothing was. */
function move(connection: Connection, moves: readonly Move[]): VhostUserError | null {
  const send = (messages: readonly Outgoing[]) => {
    const replies = connection.tellAll(messages);
    connection.waitFor(replies);
    return connection.state === "open" ? replies : [];
  };
  const replies = send(moves.map((each) => each.out()));
  const refusal = refusalIn(replies);
  if (refusal === null) return null;
  const done = moves.filter((_, i) => refusalIn(replies.slice(i, i + 1)) === null);
  const failed = refusalIn(send(done.toReversed().map((each) => each.back())));
  if (failed !== null) {
    const message = `The back end does not take its table back: ${failed.message}`;
    connection.cutOff(new VhostUserError("protocol", failed.request, message, { cause: failed }));
  }
  return refusal;
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
