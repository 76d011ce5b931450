import { assert, assertEquals, assertRejects } from "@std/assert";
import { GuestMemoryManager, OsError, Snapshot } from "membacking";
import { openFds } from "../support/proc.ts";
import { testUnless } from "../support/require.ts";
import { PAGE, range } from "../support/units.ts";

const MIB = 2 ** 20;

Deno.test("whoever is killed while saving leaves whole snapshots, and nothing else that looks like one", async () => {
  const directory = Deno.makeTempDirSync();
  try {
    for (let kill = 0; kill < 6; kill++) {
      const path = `${directory}/${kill}`;
      Deno.mkdirSync(path);
      const child = new Deno.Command(Deno.execPath(), {
        args: ["run", "-A", "--no-check", new URL("save_child.ts", import.meta.url).pathname, path],
        stdout: "piped",
      }).spawn();
      const output = child.stdout.getReader();
      await output.read(); // it has saved one at least
      await new Promise((resolve) => setTimeout(resolve, 7 * kill));
      child.kill("SIGKILL");
      await child.status;
      await output.cancel();
      const names = [...Deno.readDirSync(path)].map(({ name }) => name);
      const whole = names.filter((name) => !name.includes(".")).map(Number).sort((a, b) => a - b);
      assert(names.length - whole.length <= 1, `${names}`);
      assertEquals(whole, whole.map((_, i) => i + 1));
      const last = whole.at(-1);
      const parents = whole.slice(0, -1).map((name) => `${path}/${name}`);
      using snapshot = await Snapshot.open(`${path}/${last}`, { parents, verify: true });
      using guest = GuestMemoryManager.restore(snapshot);
      assertEquals(guest.memory.readUint32(4 * MIB - 4), last);
      assertEquals(guest.memory.readUint8(2 * MIB - 1), (last ?? 0) & 0xff);
    }
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
});

/** A file system of so many bytes, until disposed; why there is none, otherwise. */
function smallDisk(bytes: number): { path: string } & Disposable | string {
  const path = Deno.makeTempDirSync();
  const run = (command: string, ...args: string[]) => new Deno.Command(command, { args, stderr: "piped" }).outputSync();
  try {
    const { success, stderr } = run("mount", "-t", "tmpfs", "-o", `size=${bytes}`, "none", path);
    if (!success) throw new Error(new TextDecoder().decode(stderr).trim());
  } catch (error) {
    Deno.removeSync(path);
    return `no file system can be mounted here: ${error instanceof Error ? error.message : error}`;
  }
  return {
    path,
    [Symbol.dispose]() {
      run("umount", path);
      Deno.removeSync(path);
    },
  };
}

const noDisk = (() => {
  const disk = smallDisk(MIB);
  if (typeof disk === "string") return disk;
  disk[Symbol.dispose]();
  return undefined;
})();

testUnless(
  noDisk,
  "a disk that is full or read-only is an error, and memory, trackers, base and disk are as before",
  async () => {
    const disk = smallDisk(2 * MIB);
    if (typeof disk === "string") throw new Error(disk);
    using _disk = disk;
    using guest = GuestMemoryManager.create({ maxAddress: 8 * MIB, ram: [{ ranges: [range(0, 8 * MIB)] }] });
    using tracker = guest.trackDirty();
    guest.memory.writeUint32(0, 1);
    const fds = openFds();
    using base = await guest.save(`${disk.path}/base`);
    guest.memory.fill(0, 4 * MIB, 3);
    const written = tracker.take();
    for (const live of [true, false]) {
      const error = await assertRejects(() => guest.save(`${disk.path}/more`, { base, pages: written, live }), OsError);
      assertEquals(error.code, "ENOSPC");
      tracker.giveBack(written);
      assertEquals(tracker.take().count, written.count);
      assertEquals(guest.memory.find(0)?.kind, "shared");
      assertEquals([...Deno.readDirSync(disk.path)].map(({ name }) => name), ["base"]);
      await base.verify();
    }
    const { success } = new Deno.Command("mount", { args: ["-o", "remount,ro", disk.path] }).outputSync();
    assert(success);
    const error = await assertRejects(() => guest.save(`${disk.path}/more`), OsError);
    assertEquals(error.code, "EROFS");
    base[Symbol.dispose]();
    assertEquals(openFds(), fds);
    assertEquals(guest.memory.readUint8(PAGE), 3);
  },
);

/** Root may read every directory, unless it gives that up. */
const UNPRIVILEGED = Deno.uid() === 0 ? ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] : [];

Deno.test("a save into a directory that cannot be read fails, and leaves nothing there", () => {
  const directory = Deno.makeTempDirSync();
  try {
    Deno.chmodSync(directory, 0o333);
    const child = new URL("unreadable_child.ts", import.meta.url).pathname;
    const [command = "", ...args] = [...UNPRIVILEGED, Deno.execPath(), "run", "-A", "--no-check", child, directory];
    const { stdout, stderr } = new Deno.Command(command, { args }).outputSync();
    const text = new TextDecoder();
    assertEquals([text.decode(stdout), text.decode(stderr)], ["OsError\n", ""]);
    Deno.chmodSync(directory, 0o777);
    assertEquals([...Deno.readDirSync(directory)].map(({ name }) => name), []);
  } finally {
    Deno.chmodSync(directory, 0o777);
    Deno.removeSync(directory, { recursive: true });
  }
});
