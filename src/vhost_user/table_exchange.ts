/**
 * One change of a back end's memory table, carried out as a whole or not at all.
 *
 * @module
 */

import type { OpenFile } from "../../ffi/files/open_file.ts";
import type { Connection, Reply } from "./connection.ts";
import { VhostUserError } from "./errors.ts";
import { type BackendLink, refusalIn } from "./link.ts";
import { encodeMemReg, encodeMemTable, type WireRegion } from "./message.ts";
import { entryAt, type Run, type TableChange } from "./memory_table.ts";
import { MAX_TABLE_REGIONS } from "./protocol.ts";
import type { Outgoing } from "./vring.ts";
import type { Vring } from "./vrings.ts";

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

/** Running vrings whose memory goes, or for a moment might be gone: the back end is to leave them alone meanwhile. */
export function disturbedVrings(link: BackendLink, change: TableChange<OpenFile>): Vring[] {
  return link.vrings.in("running").filter(({ parts }) =>
    change.disturbs && link.rules.kind === "slots" ||
    parts.some(({ gpa, length }) => entryAt(change.table, gpa, length) === undefined)
  );
}

/**
 * A change of a back end's table that is under way: the messages have been sent, so that the back end works at it while
 * others are sent theirs, and `finish` waits for what it says.
 */
export class TableExchange {
  readonly #connection: Connection;
  readonly #otherWays: readonly Move[][];
  #sent: SentMoves | null = null;
  #failure: { readonly error: unknown } | null = null;

  /** Suspends the vrings that the change disturbs, for which it blocks, and sends the messages. What fails, `finish` tells. */
  constructor(
    link: BackendLink,
    change: TableChange<OpenFile>,
    disturbed: readonly Vring[],
    context: TableContext,
  ) {
    this.#connection = link.connection;
    const [usual = NOTHING, ...others] = waysOf(link, change, context);
    this.#otherWays = others;
    try {
      link.suspend(disturbed);
      if (this.#connection.state === "open") this.#sent = send(this.#connection, usual);
    } catch (error) {
      this.#failure = { error };
    }
  }

  /**
   * Blocks until the back end has acknowledged all of it, once.
   *
   * A back end that goes while it is at it does not need the table any more: that is no failure, and the connection says
   * so.
   *
   * @throws {VhostUserError} `"refused"`: it has the table it had. Anything else: it is cut off, and may have either.
   */
  finish(): void {
    const connection = this.#connection;
    try {
      if (this.#failure !== null) throw this.#failure.error;
      let refusal = this.#sent === null ? null : outcomeOf(connection, this.#sent);
      for (const moves of this.#otherWays) {
        if (refusal === null) break;
        refusal = connection.state === "open" ? outcomeOf(connection, send(connection, moves)) : null;
      }
      if (refusal !== null) throw refusal;
    } catch (error) {
      // Sending to a back end that has gone fails, and does not matter.
      if (connection.state !== "gone") throw error;
    }
    if (connection.state === "cut off") throw connection.error ?? new Error("A connection that was cut off says why");
  }
}

/** The ways there are to make a change, to be tried in this order. */
function waysOf(link: BackendLink, change: TableChange<OpenFile>, context: TableContext): Move[][] {
  const { table, removed, added } = change;
  const { before } = context;
  const replaced: Move = { out: () => whole(table, context), back: () => whole(before, context) };
  if (link.rules.kind === "whole") return [[replaced]];

  const removals = removed.map((entry) => removal(entry, context));
  const additions = added.map((entry) => addition(entry, context));
  // Nearly always memory comes or goes, and nothing of what goes comes again.
  if (additions.length === 0) return [removals];
  if (removals.length === 0) return [additions];
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

const NOTHING: readonly Move[] = [];

/** Moves that have been sent, and the replies to come. */
interface SentMoves {
  readonly moves: readonly Move[];
  readonly replies: readonly Reply<unknown>[];
}

function send(connection: Connection, moves: readonly Move[]): SentMoves {
  return { moves, replies: connection.tellAll(moves.map((each) => each.out())) };
}

/** Waits until all moves have been made, or none. @returns What was refused, `null` if nothing was. */
function outcomeOf(connection: Connection, { moves, replies }: SentMoves): VhostUserError | null {
  const refusalOf = (replies: readonly Reply<unknown>[]) => {
    connection.waitFor(replies);
    return connection.state === "open" ? refusalIn(replies) : null;
  };
  const refusal = refusalOf(replies);
  if (refusal === null) return null;
  const done = moves.filter((_, i) => refusalIn(replies.slice(i, i + 1)) === null);
  const failed = refusalOf(connection.tellAll(done.toReversed().map((each) => each.back())));
  if (failed !== null) notTakenBack(connection, failed);
  return refusal;
}

/** Cuts a back end off that refuses to have the table again that it had. */
export function notTakenBack(connection: Connection, refusal: VhostUserError): void {
  const message = `The back end does not take its table back: ${refusal.message}`;
  connection.cutOff(new VhostUserError("protocol", refusal.request, message, { cause: refusal }));
}

function addition(entry: Run<OpenFile>, context: TableContext): Move {
  return { out: () => add(entry, context), back: () => remove(entry, context) };
}

function removal(entry: Run<OpenFile>, context: TableContext): Move {
  return { out: () => remove(entry, context), back: () => add(entry, context) };
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
