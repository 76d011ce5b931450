/** What a guest may do with a range of RAM. */
export type RamVisibility = "unmapped" | "read-only" | "read-write";
