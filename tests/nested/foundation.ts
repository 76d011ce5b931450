/**
 * What is the same in every run of the machine: a shell, Deno with its libraries, KVM's modules, firmware, and the
 * program that the kernel starts.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { basename } from "node:path";
import type { CpioWriter } from "../../examples/debian/cpio.ts";
import { findFile } from "../../examples/debian/packages.ts";
import { run } from "../../examples/debian/run.ts";

/** In the order in which they are loaded. */
const MODULES = ["irqbypass", "kvm", "kvm-amd"] as const;

/** What the machine says instead of a status if its clock is too fast, by the clock of the host. */
export const BAD_CLOCK = "bad clock";

/**
 * The first program of the machine. The command's output and status go to serial lines of their own, so that nothing
 * the kernel says gets between; the pipe keeps programs from printing as on a terminal. `favordynmods` halves what it costs to make a VM, and KVM without its splitting of huge
 * pages has one thread less a VM.
 */
const INIT = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root DENO_DIR=/deno_dir DENO_NO_UPDATE_CHECK=1 DENO_NO_PACKAGE_JSON=1 NO_COLOR=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs -o size=90% shm /dev/shm
mount -t devpts pts /dev/pts
mount -t cgroup2 -o favordynmods none /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd
ip link set lo up
unxz /modules/*.xz 2>/dev/null
insmod /modules/irqbypass.ko
insmod /modules/kvm.ko nx_huge_pages=never
insmod /modules/kvm-amd.ko
stty -F /dev/ttyS1 raw -echo
stty -F /dev/ttyS2 raw -echo
export XDG_CACHE_HOME="$(cat /command/cache)"
started=$(sed 's/.*nested.started=\\([0-9]*\\).*/\\1/' /proc/cmdline)
elapsed=$(($(cat /sys/class/rtc/rtc0/since_epoch) - started))
if [ "$(cut -d. -f1 /proc/uptime)" -gt $((2 * elapsed + 5)) ]; then
  echo "${BAD_CLOCK} $(cat /proc/uptime) s after $elapsed s; $(dmesg | grep -o 'tsc: Detected.*')" >/dev/ttyS2
  poweroff -f
fi
cd "$(cat /command/folder)"
{ sh /command/script </dev/null; echo $? >/status; } 2>&1 | cat >/dev/ttyS1
cat /status >/dev/ttyS2
poweroff -f
`;

/** A name that is another one whenever something in it is. */
export function foundationName(): string {
  const { mtime, size } = Deno.statSync(Deno.execPath());
  const key = [Deno.version.deno, size, Number(mtime), INIT, addFoundation, addProgram, ...MODULES].join("\n");
  return `nested-foundation-${createHash("sha256").update(key).digest("hex").slice(0, 16)}.cpio`;
}

/** Adds it. */
export function addFoundation(cpio: CpioWriter, packages: string): void {
  const copy = (path: string, from: string, mode?: number) => cpio.file(path, Deno.readFileSync(from), mode);
  for (const folder of ["proc", "sys", "dev", "tmp", "root"]) cpio.directory(folder);
  cpio.file("init", INIT, 0o755);
  cpio.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
  copy("bin/busybox", `${packages}/bin/busybox`, 0o755);
  addProgram(cpio, "bin/deno", Deno.execPath(), {});
  // The back end of vhost-user tests.
  const libraries = `${packages}/usr/lib/x86_64-linux-gnu:${packages}/lib/x86_64-linux-gnu`;
  addProgram(cpio, "bin/qemu-storage-daemon", `${packages}/usr/bin/qemu-storage-daemon`, {
    LD_LIBRARY_PATH: libraries,
  });
  copy("usr/share/seabios/bios-256k.bin", `${packages}/usr/share/seabios/bios-256k.bin`);
  for (const name of MODULES) {
    const file = findFile(`${packages}/lib/modules`, new RegExp(`^${name}\\.ko(\\.xz)?$`));
    copy(`modules/${file.slice(file.lastIndexOf("/") + 1)}`, file);
  }
}

/** Adds a program with the libraries it needs, where a loader looks for them. */
function addProgram(cpio: CpioWriter, to: string, from: string, env: Readonly<Record<string, string>>): void {
  cpio.file(to, Deno.readFileSync(from), 0o755);
  for (const [library] of run("ldd", [from], { env }).matchAll(/\/\S+/g)) {
    const folder = basename(library).startsWith("ld-linux") ? "lib64" : "lib/x86_64-linux-gnu";
    cpio.file(`${folder}/${basename(library)}`, Deno.readFileSync(library), 0o755);
  }
}
