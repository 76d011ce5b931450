/**
 * Floppy images, which the firmware takes from a fw_cfg file and serves by its own int 13h: no drive is needed.
 *
 * @module
 */

import type { FwCfgFile } from "./fw_cfg.ts";
import { SetupError } from "../pc/setup_error.ts";

/** The length of an image in bytes: one side, 40 tracks of 8 sectors. */
export const FLOPPY_LENGTH = 160 * 1024;

/**
 * The file that makes SeaBIOS boot from `image`.
 *
 * @throws {SetupError} If it is not 160 KiB long, by which SeaBIOS tells what kind of disk it is.
 */
export function floppyFile(image: Uint8Array): FwCfgFile {
  if (image.length !== FLOPPY_LENGTH) {
    throw new SetupError(
      `A floppy image has ${FLOPPY_LENGTH} bytes (160 KiB), and this one has ${image.length}; ` +
        `resize it with "truncate --size 160K FILE"`,
    );
  }
  return { name: "floppyimg/boot.img", content: image };
}
