import { MappingError } from "../errors.ts";
import { hex } from "../hex.ts";
import { MemoryRange } from "../memory_range.ts";
import type { Piece } from "../map/region.ts";
import type { Sight } from "../map/sight.ts";
import { type DmaState, EMPTY_BOOK, type State } from "../map/state.ts";
import type { Span } from "../span.ts";
import { BookTrack } from "./book_track.ts";
import type { DmaStep } from "./steps.ts";

/** The mappings of one DMA target. A mapping is never cut: it goes whole, and what is left of it comes anew. */
export class DmaTrack extends BookTrack<Piece> {
  /** The target before. */
  dma: DmaState = NOBODY;
  /** The target after the request, once the walk is over. */
  after: DmaState = NOBODY;
  /** Whether the request attaches it. */
  isNew = false;

  /** Begins anew: from what the target has been told. */
  follow(dma: DmaState, spans: readonly Span[], isNew: boolean): void {
    this.from(dma.mappings, spans);
    this.dma = this.after = dma;
    this.isNew = isNew;
  }

  /** @throws {MappingError} If the target needs a file where there is none, or pins what would be copied. */
  override segment(start: number, end: number, before: Sight, after: Sight): void {
    const { mapping } = after;
    if (mapping !== null && mapping.own !== null && this.dma.needsFd) {
      throw new MappingError(
        `A DMA target needs file descriptors and the memory at ${hex(start)} is ${mapping.kind}, back it by a memfd`,
        new MemoryRange(start, end),
      );
    }
    if (mapping?.kind === "copy-on-write" && this.dma.pins) {
      throw new MappingError(
        `A DMA target that pins memory cannot have the copy-on-write memory at ${
          hex(start)
        }: all of its file would be copied`,
        new MemoryRange(start, end),
      );
    }
    super.segment(start, end, before, after);
  }

  /** Says that the walk to `next` is over. */
  completeAll(next: State): void {
    const mappings = this.complete(next, Infinity);
    if (mappings !== this.dma.mappings) this.after = { ...this.dma, mappings };
  }

  protected wants(sight: Sight): Piece | null {
    return sight.piece();
  }

  protected partOf(sight: Sight): number {
    return sight.mappingStart;
  }

  protected isSame(a: Piece, b: Piece): boolean {
    if (a.writable !== b.writable || a.region.type !== b.region.type) return false;
    const [x, y] = [a.mapping, b.mapping];
    return x === y ||
      (x.delta === y.delta && x.own === y.own && (x.own !== null || x.backing?.file === y.backing?.file));
  }

  protected step(start: number, end: number, from: Piece | null, to: Piece | null, uncertain: boolean): DmaStep {
    return { kind: "dma", dma: this.dma, start, end, from, to, uncertain };
  }
}

/** What a track follows before it is used. */
const NOBODY: DmaState = { id: 0, target: {}, needsFd: false, pins: false, mappings: EMPTY_BOOK };
