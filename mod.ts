export * from "./src/core/errors.ts";
export { MemoryRange } from "./src/core/memory_range.ts";
