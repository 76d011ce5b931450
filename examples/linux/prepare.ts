/**
 * What is needed to boot Linux, made once and kept: Debian's kernel, unpacked, and a first file system with a shell, the
 * kernel's modules and the programs of the examples.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { basename } from "node:path";
import { fileURLToPath } from "node:url";
import { cached } from "../debian/cache.ts";
import { CpioWriter } from "../debian/cpio.ts";
import { cloudKernelPackage, findFile, unpackPackages, updateLists } from "../debian/packages.ts";
import { PackageError, run } from "../debian/run.ts";
import { INIT } from "./guest/init.ts";
import { readKernelImage } from "./kernel_image.ts";

/** Modules that Debian has outside the kernel, for `modprobe`. */
const KERNEL_MODULES = [
  ...["virtio", "virtio_ring", "virtio_mmio", "virtio_blk", "virtio_console", "virtio_balloon", "virtio_mem"],
] as const;

/** Programs of the examples, compiled here: nothing compiled is kept with the sources. */
const PROGRAMS = ["stress"] as const;

const sourceOf = (program: string) => new URL(`./guest/${program}.c`, import.meta.url);

/** The name of the folder in the cache: another one whenever something is to be in it that was not. */
export function linuxFolder(): string {
  const hash = createHash("sha256").update([INIT, ...KERNEL_MODULES].join("\n"));
  for (const program of PROGRAMS) hash.update(Deno.readFileSync(sourceOf(program)));
  return `linux-${hash.digest("hex").slice(0, 16)}`;
}

/** Makes it if it is not there, and returns the folder. */
export function prepareLinux(): string {
  return cached(linuxFolder(), (folder) => {
    console.error("Downloading Debian's cloud kernel, once");
    updateLists();
    const packages = Deno.makeTempDirSync({ prefix: "linux-" });
    try {
      unpackPackages([cloudKernelPackage(), "busybox-static"], packages);
      const { header, vmlinux } = readKernelImage(Deno.readFileSync(findFile(`${packages}/boot`, /^vmlinuz-/)));
      Deno.mkdirSync(folder);
      Deno.writeFileSync(`${folder}/header`, header);
      Deno.writeFileSync(`${folder}/vmlinux`, vmlinux);
      for (const program of PROGRAMS) compile(program, `${folder}/${program}`);
      Deno.writeFileSync(`${folder}/initramfs`, initramfs(packages, folder));
    } finally {
      Deno.removeSync(packages, { recursive: true });
    }
  });
}

function compile(program: string, to: string): void {
  try {
    run("cc", ["-static", "-O2", "-o", to, fileURLToPath(sourceOf(program))]);
  } catch (cause) {
    if (!(cause instanceof PackageError)) throw cause;
    throw new PackageError(`"${program}" for the guest needs a C compiler: "apt-get install gcc libc6-dev"`, { cause });
  }
}

function initramfs(packages: string, folder: string): Uint8Array<ArrayBuffer> {
  const parts: Uint8Array<ArrayBuffer>[] = [];
  const cpio = new CpioWriter((bytes) => parts.push(new Uint8Array(bytes)));
  for (const folder of ["proc", "sys", "dev", "tmp", "root"]) cpio.directory(folder);
  // Before there is a device file system, the kernel opens this for the first program.
  cpio.characterDevice("dev/console", 5, 1);
  cpio.file("init", INIT, 0o755);
  for (const program of PROGRAMS) cpio.file(`bin/${program}`, Deno.readFileSync(`${folder}/${program}`), 0o755);
  cpio.file("bin/busybox", Deno.readFileSync(`${packages}/bin/busybox`), 0o755);
  for (const name of KERNEL_MODULES) {
    const file = findFile(`${packages}/lib/modules`, new RegExp(`^${name}\\.ko(\\.xz)?$`));
    const [release = ""] = file.slice(`${packages}/lib/modules/`.length).split("/");
    cpio.file(`lib/modules/${release}/${basename(file)}`, Deno.readFileSync(file));
  }
  cpio.end();
  const whole = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
