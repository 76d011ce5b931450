import { MembackingError } from "./errors.ts";

/**
 * What is wrong with a snapshot:
 *
 * - `"exists"`: the directory it should be written to is there already;
 * - `"missing"`: there is no snapshot, or a part of it is gone;
 * - `"version"`: it was written by a version of this package that this one does not know;
 * - `"truncated"`: a file is shorter than the index says;
 * - `"corrupt"`: a checksum does not agree, or the index contradicts itself;
 * - `"layout"`: it is of memory of another layout;
 * - `"parent"`: it is a difference, and what it differs from is not given or is another snapshot.
 */
export type SnapshotErrorKind = "exists" | "missing" | "version" | "truncated" | "corrupt" | "layout" | "parent";

/** A snapshot cannot be read, written or restored. Memory, the snapshot and its parents are as they were. */
export class SnapshotError extends MembackingError {
  /** The class name, which is also what a stack trace shows. */
  override name = "SnapshotError";
  /** What is wrong. */
  readonly kind: SnapshotErrorKind;
  /** The snapshot's directory, or the file concerned. */
  readonly path: string;

  /** Builds the error. */
  constructor(kind: SnapshotErrorKind, path: string, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.kind = kind;
    this.path = path;
  }
}
