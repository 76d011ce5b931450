/**
 * The disk of a VM in a process of its own: `npx -y deno@2.9.6 task processes`
 *
 * ```
 *   VMM process                                   disk process (--allow-ffi, --allow-read and --allow-write of one file)
 *   owner: regions, guest memory, KVM             ProcessClient: the same guest memory, at its own addresses
 *     vCPU, in a Worker                             virtqueue, block device
 *       guest: writes and reads sectors    ring     disk.img
 *       OUT doorbell -> main thread ------ a byte on standard input ->
 * ```
 *
 * The guest's requests and the disk's data are nobody's but theirs: the disk's process finds both in guest memory. It is
 * killed in the middle of its work; the guest sees an I/O error and goes on, and so does its disk when it is started anew.
 *
 * The vCPU is in the VMM's process, since KVM's descriptors work in the process that made them alone.
 *
 * @module
 */

import { GuestMemoryManager } from "membacking";
import { Kvm, VcpuControl } from "membacking/kvm";
import { DiskProcess } from "./disk_process.ts";
import { PATTERN, startGuest } from "./guest.ts";
import { DOORBELL_PORT, RAM, type Report, REPORT_PORT, reportOf, SECTOR, SECTORS } from "./layout.ts";

const directory = Deno.makeTempDirSync({ prefix: "membacking-" });
const image = `${directory}/disk.img`;
Deno.writeFileSync(image, new Uint8Array(SECTOR * SECTORS));

try {
  await run();
} finally {
  Deno.removeSync(directory, { recursive: true });
}

async function run(): Promise<void> {
  using guest = GuestMemoryManager.create({ maxAddress: RAM.end, ram: [{ ranges: [RAM] }] });
  using kvm = Kvm.open();
  using vm = kvm.createVm();
  using _attached = guest.attachPartition(vm);
  using vcpu = vm.createVcpu(0);
  startGuest(vcpu, guest.memory);

  await using disk = new DiskProcess(guest.regions, image);
  await disk.start();
  console.log(`1. The disk runs in process ${disk.pid}, this is process ${Deno.pid}`);

  // The guest, and what it tells.
  const reports: Report[] = [];
  let wake = () => {};
  using control = new VcpuControl(vcpu);
  const worker = new Worker(new URL("./vcpu.ts", import.meta.url), { type: "module" });
  const stopped = Promise.withResolvers<void>();
  worker.onmessage = ({ data }) => {
    if (data === "stopped") return stopped.resolve();
    if (data.port === DOORBELL_PORT) return disk.ring();
    if (data.port !== REPORT_PORT) {
      return stopped.reject(new Error(`Sector ${data.value} does not hold what was written`));
    }
    reports.push(reportOf(data.value));
    wake();
  };
  worker.onerror = ({ message }) => stopped.reject(new Error(message));
  worker.postMessage(control.share());

  /** Waits for a report that is like this, and counts those before it. */
  const until = async (isIt: (report: Report) => boolean): Promise<{ report: Report; before: number }> => {
    for (let before = 0;; before++) {
      while (reports.length === 0) {
        const { promise, resolve } = Promise.withResolvers<void>();
        wake = resolve;
        await Promise.race([promise, stopped.promise]);
      }
      const [report] = reports.splice(0, 1);
      if (report !== undefined && isIt(report)) return { report, before };
    }
  };

  for (let sector = 0; sector < SECTORS; sector++) await until(({ kind, ok }) => kind === "read" && ok);
  console.log(`2. The guest has written all ${SECTORS} sectors and read them back, through a ring in its memory`);

  let failed = 0;
  disk.ended = (count) => failed += count;
  disk.kill();
  const error = await until(({ ok }) => !ok);
  console.log(
    `3. The disk's process was killed: after ${error.before} more requests the guest sees an I/O error, ` +
      `${error.report.kind === "read" ? "reading" : "writing"} sector ${error.report.sector}, and goes on`,
  );

  await disk.start();
  const again = await until(({ ok }) => ok);
  console.log(
    `4. Another one was started, process ${disk.pid}: sector ${again.report.sector} works again, ` +
      `after ${failed} requests that failed`,
  );

  reports.length = 0;
  for (let sector = 0; sector < SECTORS; sector++) await until(({ kind, ok }) => kind === "read" && ok);
  control.kick();
  await stopped.promise;
  const bytes = new DataView(Deno.readFileSync(image).buffer);
  for (let sector = 0; sector < SECTORS; sector++) {
    const found = bytes.getUint32(sector * SECTOR, true);
    if (found !== PATTERN + sector) throw new Error(`Sector ${sector} of the image holds ${found}`);
  }
  console.log(`5. The guest was stopped; the image holds what it has written, in every sector`);
}
