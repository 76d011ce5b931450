import { assert, assertEquals, assertLess } from "@std/assert";
import fc from "fast-check";
import { drawMemoryMapSvg, GuestMemoryManager, MemoryRange } from "membacking";
import { map, mapping, PC, region } from "./support/inspected.ts";

/** Throws unless every element of `xml` is closed in order, every `&` begins a reference, and it is one element. */
function elementsOf(xml: string): { name: string; attributes: string }[] {
  const found: { name: string; attributes: string }[] = [];
  const open: string[] = [];
  const rest = xml.replace(
    /<(\/?)([a-z]+)((?:\s+[\w:-]+="[^"<]*")*)\s*(\/?)>/gi,
    (_, closing, name, attributes, empty) => {
      if (closing !== "") assertEquals(open.pop(), name);
      else {
        assert(open.length > 0 || found.length === 0, "there is a second root");
        found.push({ name, attributes });
        if (empty === "") open.push(name);
      }
      return "";
    },
  );
  assertEquals(open, []);
  assert(!/[<>]/.test(rest), "something is neither an element nor text");
  assert(!/&(?!#\d+;)/.test(rest), "an & begins no reference");
  return found;
}

function textsOf(svg: string): string[] {
  return [...svg.matchAll(/<text[^>]*>([^<]*)<\/text>/g)].map(([, text = ""]) =>
    text.replace(/&#(\d+);/g, (_, code) => String.fromCharCode(Number(code)))
  );
}

Deno.test("drawMemoryMapSvg() draws a shape for each piece, with a pattern for each look", () => {
  const svg = drawMemoryMapSvg(PC, { title: "A PC" });
  const elements = elementsOf(svg);
  const shapes = (test: RegExp) => elements.filter(({ attributes }) => test.test(attributes)).length;
  // RAM twice and the VGA region, as layers and as seen, and one in the legend.
  assertEquals(shapes(/class="w /), 7);
  // What VGA hides of the RAM.
  assertEquals(shapes(/fill:url\(#mb-d/), 2);
  // The BIOS, as a layer, as seen, and in the legend.
  assertEquals(shapes(/fill:url\(#mb-r/), 3);
  // The BAR that is not mapped.
  assertEquals(shapes(/stroke-dasharray="6 4"/), 2);
  // Two slots and a DMA mapping.
  assertEquals(shapes(/class="s"/), 3);
  assert(svg.includes("<title>A PC</title>"));
  const texts = textsOf(svg);
  for (const text of ["0xa0000", "0x80010000", "bios.bin", "  9 vga", "vm+0x1000".padStart(14)]) {
    assert(texts.some((found) => found.trim().includes(text.trim())), `${text} is missing`);
  }
});

Deno.test("drawMemoryMapSvg() never takes a name for markup", () => {
  fc.assert(fc.property(
    fc.oneof(
      fc.string({ unit: "binary" }),
      fc.constantFrom('"><script>alert(1)</script>', "]]>", "&amp;", "</text>", "\u0000\ud800", "<!--", "' onload='x"),
    ),
    (name) => {
      const regions = [region(1, name, 0, "0x0-0x1000000", ["0x0-0x1000000"], [
        mapping("0x0-0x1000000", `memfd "${name}"`),
      ])];
      const partitions = [{ name, offset: 0, pin: false, ranges: [] }];
      const names = elementsOf(drawMemoryMapSvg(map(regions, { partitions }), { title: name })).map(({ name }) => name);
      assertEquals([...new Set(names)].sort(), [
        "circle",
        "defs",
        "path",
        "pattern",
        "rect",
        "style",
        "svg",
        "text",
        "title",
      ]);
    },
  ));
});

Deno.test("drawMemoryMapSvg() stays a picture for 30,000 regions", () => {
  const regions = Array.from({ length: 30_000 }, (_, i) => {
    const range = `0x${(i * 0x2000).toString(16)}-0x${(i * 0x2000 + 0x1000).toString(16)}`;
    return region(i, `r${i}`, i % 3, range, [range], [mapping(range, 'memfd "m"')]);
  });
  const svg = drawMemoryMapSvg(map(regions));
  elementsOf(svg);
  assertLess(svg.length, 100_000);
  assert(textsOf(svg).some((text) => text.endsWith("k pieces") || /^[\d.]+k$/.test(text)), "nothing is counted");
});

Deno.test("drawMemoryMapSvg() says what guest memory is made of", () => {
  using guest = GuestMemoryManager.create({
    maxAddress: 0x100_0000,
    ram: [{ ranges: [new MemoryRange(0, 0x80_0000)] }],
  });
  const texts = textsOf(drawMemoryMapSvg(guest.inspect()));
  assert(texts.some((text) => text.startsWith("ram: 8M shared")), texts.join("\n"));
});

Deno.test("drawMemoryMapSvg() says so when there is nothing to draw", () => {
  const svg = drawMemoryMapSvg(map([]));
  elementsOf(svg);
  assert(textsOf(svg).includes("The memory map has no regions"));
});

Deno.test("drawMemoryMapSvg() draws nothing outside of its width", () => {
  for (const width of [400, 960]) {
    const svg = drawMemoryMapSvg(PC, { width });
    for (const [, x = "0", length = "0"] of svg.matchAll(/<rect[^>]* x="([\d.-]+)"[^>]* width="([\d.]+)"/g)) {
      assert(Number(x) >= 0 && Number(x) + Number(length) <= width, `${x} + ${length}`);
    }
  }
});
