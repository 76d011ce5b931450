/**
 * A floppy image of our own, whose boot sector looks at the machine from inside the guest: is the memory what the VMM
 * says it is? It writes its findings to a port, a line for each, and gives control back to the firmware.
 *
 * @module
 */

import { Assembler, EAX, EBP, EBX, ECX, EDI, EDX, ESP, type Register } from "./assembler.ts";
import { BAR_OFFSETS, CARD_MEMORY_LENGTH, CARD_SLOT, COMMAND, COMMAND_MEMORY, IDENTITY, REGISTER } from "./card.ts";
import { FLOPPY_LENGTH } from "./floppy.ts";

/** The port for the findings, which is the console port of Bochs. */
export const FINDINGS_PORT = 0xe9;
/** What a finding ends with. */
export const GOOD = ": yes";
/** What is at the start of the card's memory in the end, for the VMM to look at. */
export const LEFT_BEHIND = 0x6465_7361;

const SECTOR = 512;
/** Where the firmware loads a boot sector, and where that one loads the rest. */
const FIRST = 0x7c00;
const SECOND = FIRST + SECTOR;
/** How many sectors the rest has: what is left of the track. */
const SECTORS = 7;
/** What the second sector begins with. */
const SECOND_SECTOR = 0x3263_6573;

/** Addresses and what the checks put there. */
const VGA_WINDOW = 0xa_0000;
const F_SEGMENT = 0xf_0000;
const PAM_RAM = 0xd_0000;
const PAM3 = 0x5c; // d0000 in its low nibble, d4000 in the other
const WORD = 0x1234_5678;
const OTHER_WORD = 0x9abc_def0;
const MOVED = 0xe000_0000;
const ONES = 0xffff_ffff;

/** Code that finds out and says so. */
class Checks extends Assembler {
  #count = 0;
  #failed = "";

  /** Prints `name`, and whether every `expect` in `body` found what it should. */
  check(name: string, body: () => void): this {
    const id = this.#count++;
    this.#failed = `failed ${id}`;
    this.print(name);
    body();
    this.print(`${GOOD}\n`).jump(`next ${id}`);
    return this.label(this.#failed).print(": NO\n").label(`next ${id}`);
  }

  /** The check fails unless EAX is `value`. */
  expect(value: number): this {
    return this.compare(value).jumpIfDifferent(this.#failed);
  }

  /** The check fails unless EAX is what is in `register`. */
  expectSameAs(register: Register): this {
    return this.compareWith(register).jumpIfDifferent(this.#failed);
  }

  /** The check fails if the BIOS call did. */
  expectSuccess(): this {
    return this.jumpIfCarry(this.#failed);
  }

  /** Lets `load` and `store` count from an address on. */
  at(address: number): this {
    return this.set(EBX, address);
  }

  /** The same, from an address in a register on. */
  atRegister(register: Register): this {
    return this.copyFrom(register).copyTo(EBX);
  }

  /** Reads four bytes of a function's configuration into EAX. */
  readConfig(slot: number, offset: number): this {
    return this.set(EAX, 0x8000_0000 + (slot << 11) + offset).out32(0xcf8).in32(0xcfc);
  }

  /** Writes EAX over the four bytes read last. */
  writeConfig(): this {
    return this.out32(0xcfc);
  }

  /** Writes over the two bits of d0000-d3fff in PAM3, and leaves the others. */
  setPam(bits: number): this {
    return this.readConfig(0, PAM3).bytes(0x24, 0xfc, 0x0c, bits).writeConfig(); // and al, 0xfc; or al, bits
  }
}

/** The image: a boot sector, the sectors it loads, and nothing else. */
export function bootFloppy(): Uint8Array<ArrayBuffer> {
  const code = new Checks(FIRST);

  // ds = es = ss = 0, and the stack below the code.
  code.set16(EAX, 0).bytes(0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0).set16(ESP, FIRST);
  code.check("int 13h reads the second sector", () => {
    // Read (AH = 2) from sector 2 on, of track 0, side 0, drive 0, to 0:SECOND.
    code.set16(EAX, 0x0200 + SECTORS).set16(EBX, SECOND).set16(ECX, 0x0002).set16(EDX, 0).interrupt(0x13);
    code.expectSuccess().bigRealMode("flat").at(SECOND).load().expect(SECOND_SECTOR);
  });
  code.jump("more").printTo(FINDINGS_PORT).flatSegment("flat");
  code.padTo(SECTOR - 2).bytes(0x55, 0xaa).bytes(...new Uint8Array(Uint32Array.of(SECOND_SECTOR).buffer)).label("more");

  code.check("the F segment ignores writes", () => {
    code.at(F_SEGMENT).load().copyTo(ECX).not().store().load().expectSameAs(ECX);
  });
  code.check("the VGA window reads as ones", () => {
    code.at(VGA_WINDOW).set(EAX, WORD).store().load().expect(ONES).load(0x1_fffc).expect(ONES);
  });
  code.check("RAM that PAM makes writable keeps what is written", () => {
    code.at(PAM_RAM).setPam(3).set(EAX, WORD).store().load().expect(WORD);
  });
  code.check("RAM that PAM makes read-only keeps it still", () => {
    code.setPam(1).set(EAX, OTHER_WORD).store().load().expect(WORD);
  });
  code.check("RAM that PAM takes away reads as ones", () => {
    code.setPam(0).load().expect(ONES);
  });
  code.check("RAM that PAM gives back has it again", () => {
    code.setPam(1).load().expect(WORD);
  });

  // The windows of the card: EDI is where its registers are, EBP where its memory is.
  const { registers, memory } = BAR_OFFSETS;
  code.readConfig(CARD_SLOT, registers).copyTo(EDI).readConfig(CARD_SLOT, memory).copyTo(EBP);
  code.check("the card's registers answer", () => {
    code.atRegister(EDI).load(REGISTER.identity).expect(IDENTITY);
    code.set(EAX, WORD).store(REGISTER.inverter).load(REGISTER.inverter).expect(~WORD);
  });
  code.check("the card's memory is memory", () => {
    const last = CARD_MEMORY_LENGTH - 4;
    code.atRegister(EBP).set(EAX, WORD).store(last).store().load().expect(WORD).load(last).expect(WORD);
  });
  const refused = (name: string, bar: number, place: () => void) =>
    code.check(name, () => {
      const was = bar === memory ? EBP : EDI;
      code.readConfig(CARD_SLOT, bar);
      place();
      code.writeConfig().readConfig(CARD_SLOT, bar).expectSameAs(was);
      code.atRegister(EBP).load().expect(WORD).atRegister(EDI).load(REGISTER.identity).expect(IDENTITY);
    });
  refused("a BAR over RAM stays where it was", memory, () => code.set(EAX, 0x10_0000));
  code.check("a BAR over another gives way to the older one", () => {
    code.readConfig(CARD_SLOT, memory).copyFrom(EDI).writeConfig();
    code.atRegister(EBP).load().expect(ONES).atRegister(EDI).load(REGISTER.identity).expect(IDENTITY);
    code.readConfig(CARD_SLOT, memory).copyFrom(EBP).writeConfig().readConfig(CARD_SLOT, memory).expectSameAs(EBP);
    code.atRegister(EBP).load().expect(WORD);
  });
  refused("a BAR over the ROM stays where it was", memory, () => code.set(EAX, 0xffe0_0000));
  refused("a BAR over the local APIC stays where it was", registers, () => code.set(EAX, 0xfee0_0000));
  code.check("a BAR that moves takes its memory along", () => {
    code.readConfig(CARD_SLOT, memory).set(EAX, MOVED).writeConfig().readConfig(CARD_SLOT, memory).expect(MOVED);
    code.atRegister(EBP).load().expect(ONES).at(MOVED).load().expect(WORD);
  });
  code.check("a card that is switched off reads as ones", () => {
    code.readConfig(CARD_SLOT, COMMAND).set(EAX, 0).writeConfig();
    code.at(MOVED).load().expect(ONES).atRegister(EDI).load(REGISTER.identity).expect(ONES);
  });
  code.check("a card that is switched on again is as before", () => {
    code.readConfig(CARD_SLOT, COMMAND).set(EAX, COMMAND_MEMORY).writeConfig();
    code.atRegister(EDI).load(REGISTER.identity).expect(IDENTITY).at(MOVED).load().expect(WORD);
  });
  code.set(EAX, LEFT_BEHIND).store();
  code.interrupt(0x18); // nothing to boot here: let the firmware go on

  const image = new Uint8Array(FLOPPY_LENGTH);
  image.set(code.padTo((1 + SECTORS) * SECTOR).assemble());
  return image;
}
