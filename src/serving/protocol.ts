/**
 * What clients and the owner of a region manager say to each other, through a port or a socket.
 *
 * @module
 */

import type { ThreadIdentity } from "../../ffi/os/thread.ts";
import type { OpenOptions } from "../../ffi/files/mappable.ts";
import type { MemfdOptions } from "../../ffi/files/memfd.ts";
import type { MapParams } from "../core/map/region.ts";
import type { MemoryPolicy } from "../core/targets.ts";
import type { ErrorData, Json } from "./error_data.ts";

/** The ends of a range. Objects of classes do not survive `postMessage`. */
export type Ends = readonly [start: number, end: number];

/** A file that a client maps. */
export interface FileReference {
  /** The client's number for the file; negative for one that the owner lent. */
  readonly key: number;
  /** The client's descriptor, open until the request is answered; -1 in another process, which has sent it before. */
  readonly fd: number;
}

/** A region as `newRegion` makes it. */
export interface NewRegion {
  readonly name: string;
  readonly range: Ends;
  readonly priority: number;
  readonly type?: "ram" | "device";
  readonly holes?: "exit" | "fault";
  /** An age that was asked for before: of those that overlap at equal priority, the older one is visible. */
  readonly age?: number;
}

/** A change that can be part of a batch. Regions are named by their ids; in a batch, -1 is the first new one in it. */
export type ChangeRequest =
  | { readonly kind: "new-region"; readonly options: NewRegion }
  | { readonly kind: "map"; readonly region: number; readonly params: Partial<MapParams> }
  | { readonly kind: "unmap"; readonly region: number }
  | {
    readonly kind: "add-mapping";
    readonly region: number;
    readonly range: Ends;
    readonly file: FileReference | "private";
    readonly fileOffset?: number;
    readonly writable?: boolean;
    readonly copyOnWrite?: boolean;
    readonly policy?: MemoryPolicy;
  }
  | { readonly kind: "remove-mappings"; readonly region: number; readonly range: Ends }
  /** `eventually`: not an error if the region is locked; it goes when the locks do. */
  | { readonly kind: "remove"; readonly region: number; readonly eventually?: boolean };

/** All that a client may ask for. */
export type Request =
  | ChangeRequest
  | { readonly kind: "batch"; readonly changes: readonly ChangeRequest[] }
  | { readonly kind: "teardown"; readonly region: number }
  | { readonly kind: "map-params"; readonly region: number }
  | { readonly kind: "visible"; readonly region: number }
  | { readonly kind: "next-age" }
  | { readonly kind: "regions" }
  | { readonly kind: "inspect" }
  | { readonly kind: "memfd"; readonly name: string; readonly size: number; readonly options: MemfdOptions }
  | { readonly kind: "open"; readonly path: string; readonly options: OpenOptions };

/** The first message of a client. */
export interface Hello {
  readonly kind: "hello";
  /** The thread it runs on, in its own process. */
  readonly thread: ThreadIdentity;
  /** From another process: a number that comes back with the welcome. */
  readonly token?: number;
  /**
   * From another thread: the port for all messages after this one, which the owner takes when it sees in `LINE.posted`
   * that there are some. The port of this message is then for what the owner says, and to notice the end.
   */
  readonly messages?: MessagePort;
  /** For a client that does not wait for answers: memory for a lane beside the port. */
  readonly lane?: SharedArrayBuffer;
  /** For a client that waits for answers: the words and the texts of both sides, as `MAIL` says. */
  readonly mail?: Mail;
}

/** Memory through which a synchronous client and its owner talk. */
export interface Mail {
  /** `MAIL`. */
  readonly words: SharedArrayBuffer;
  /** The text of a request. The client lets it grow. */
  readonly request: SharedArrayBuffer;
  /** The text of an answer. The owner lets it grow. */
  readonly answer: SharedArrayBuffer;
}

/** What a client sends. */
export type ClientMessage =
  | Hello
  /** `order`: its number among all requests, where there is a lane. */
  | { readonly kind: "request"; readonly id: number; readonly order?: number; readonly request: Request }
  /** A request that could not be sent after all, where there is a lane. */
  | { readonly kind: "skip"; readonly order: number }
  | { readonly kind: "abort"; readonly id: number }
  /** A lock was released while somebody waited for that. */
  | { readonly kind: "released" }
  /** A file that comes with this message, for requests to name. From another process alone. */
  | { readonly kind: "file"; readonly key: number }
  /** A file is no longer used. */
  | { readonly kind: "forget"; readonly key: number }
  /** What had changed has been let go of. From another process alone. */
  | { readonly kind: "let-go" }
  /** Another client wants to be served: at a port, or from another process, at the socket that comes along. */
  | { readonly kind: "serve"; readonly port: MessagePort | null }
  /** The client is gone, its locks and its use of memory with it. */
  | { readonly kind: "bye" };

/** The answer to a request. */
export type Answer = { readonly value: Json } | { readonly error: ErrorData };

/** What a client in another thread has to know. */
export interface Welcome {
  readonly kind: "welcome";
  /** The thread of the owner. */
  readonly owner: ThreadIdentity;
  /** The host address of GPA 0, or `null` where guest memory cannot be looked at. */
  readonly base: number | null;
  /** Where guest memory ends, in bytes. */
  readonly length: number;
  /** `LINE`. */
  readonly line: SharedArrayBuffer;
  readonly locks: SharedArrayBuffer;
  readonly nodes: SharedArrayBuffer;
  readonly rows: SharedArrayBuffer;
  /** One word, which is notified to wake the owner. */
  readonly bell: SharedArrayBuffer;
}

/** What a client in another process has to know. Two files come with it: its own, and the memory map. */
export interface ProcessWelcome {
  readonly kind: "process-welcome";
  /** The number that the client sent: a socket may still have what was meant for an earlier one. */
  readonly token: number;
  /** Whether guest memory can be looked at. */
  readonly hasMemory: boolean;
  /** Where guest memory ends, in bytes. */
  readonly length: number;
  /** What host addresses of guest memory have to be multiples of, so that its files can be mapped there. */
  readonly alignment: number;
}

/** What the owner sends. */
export type OwnerMessage =
  | Welcome
  | ProcessWelcome
  /** `order`: its number among all answers, where there is a lane. */
  | { readonly kind: "answer"; readonly id: number; readonly order?: number; readonly answer: Answer }
  /** Files that come with this message, by the owner's numbers for them. To other processes alone. */
  | { readonly kind: "files"; readonly files: readonly number[] }
  /** Files that nothing refers to any more. To other processes alone. */
  | { readonly kind: "forget"; readonly files: readonly number[] }
  /** What writes are marked in, which comes along. To other processes alone. */
  | { readonly kind: "marks" }
  /** Where the memory map has changed. To other processes alone. */
  | { readonly kind: "changed"; readonly spans: readonly Ends[] }
  /** The client is no longer served. */
  | { readonly kind: "closed" };
