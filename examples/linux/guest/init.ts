/**
 * The first program of the guest's user space, for busybox's shell: a shell that takes its commands from the serial port.
 * For each line it says what the command prints and then its status, so that whoever types knows when it is over.
 *
 * @module
 */

/** What it says when it is ready for the first command. */
export const READY = "membacking: ready";
/** What it says in front of the status of a command. */
export const STATUS = "membacking: status ";
/** The program. */
export const INIT = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
unxz /lib/modules/*/*.xz 2>/dev/null
depmod
stty -F /dev/ttyS0 raw -echo
exec </dev/ttyS0 >/dev/ttyS0 2>&1
echo "${READY}"
while read -r line; do
  eval "$line"
  echo "${STATUS}$?"
done
`;
