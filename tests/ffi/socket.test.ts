import { assert, assertEquals, assertThrows } from "@std/assert";
import { Mappable, OsError } from "membacking";
import { libc } from "../../ffi/os/libc.ts";
import { Poll, watchFd } from "../../ffi/os/poll.ts";
import { ProcessHandle } from "../../ffi/os/process.ts";
import { closeFds, MAX_FDS, UnixSocket } from "../../ffi/os/socket.ts";
import { openFds } from "../support/proc.ts";
import { testUnless } from "../support/require.ts";

/** Other shells cannot write to a descriptor of more than one digit. */
const noBash = exists("/bin/bash") ? undefined : "there is no bash";

function exists(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
const bytesOf = (message: string) => new TextEncoder().encode(message);

Deno.test("UnixSocket carries messages with descriptors, and leaves none behind", () => {
  const before = openFds();
  {
    const [one, other] = UnixSocket.pair("seqpacket");
    using _one = one;
    using _other = other;
    assertEquals(other.receive(new Uint8Array(10)), null);
    using file = Mappable.memfd("carried", 0x1000);
    file.write(0, bytesOf("hello"));
    assertEquals(one.send(bytesOf("a message"), [file.fd, file.fd]), 9);
    assertEquals(one.send(bytesOf("another")), 7);
    const into = new Uint8Array(100);
    const first = other.receive(into);
    assertEquals([first?.length, first?.truncated, first?.credentials], [9, false, null]);
    assertEquals(text(into.subarray(0, 9)), "a message");
    const [fd = -1, unwanted = -1] = first?.fds ?? [];
    using arrived = Mappable.fromFd(fd);
    closeFds([fd, unwanted]);
    const read = new Uint8Array(5);
    arrived.read(0, read);
    assertEquals(text(read), "hello");
    const second = other.receive(new Uint8Array(3));
    assertEquals([second?.length, second?.truncated], [3, true]);
    one[Symbol.dispose]();
    assertEquals(other.receive(into)?.length, 0);
    assertEquals(assertThrows(() => other.send(into), OsError).code, "EPIPE");
  }
  assertEquals(openFds(), before);
});

Deno.test("UnixSocket.send says when there is no room, and waitFor when there is", () => {
  const [one, other] = UnixSocket.pair("stream");
  using _one = one;
  using _other = other;
  const chunk = new Uint8Array(1 << 16);
  while (one.send(chunk) !== null);
  assert(!one.waitFor("send", 0));
  assert(other.waitFor("receive", 0));
  while (other.receive(chunk) !== null);
  assert(one.waitFor("send", 1000));
  assert(!other.waitFor("receive", 1));
});

Deno.test("as many descriptors as the kernel allows arrive, and who sent them", () => {
  const [one, other] = UnixSocket.pair("seqpacket");
  using _one = one;
  using _other = other;
  other.passCredentials();
  using file = Mappable.memfd("many", 0x1000);
  one.send(bytesOf("x"), new Array<number>(MAX_FDS).fill(file.fd));
  const received = other.receive(new Uint8Array(1));
  assertEquals([received?.fds.length, received?.truncated, received?.credentials?.pid], [MAX_FDS, false, Deno.pid]);
  closeFds(received?.fds ?? []);
  assertThrows(() => one.send(bytesOf("x"), new Array<number>(MAX_FDS + 1).fill(file.fd)), RangeError);
});

Deno.test("UnixSocket.connect reaches who listens at a path", () => {
  const path = Deno.makeTempDirSync() + "/socket";
  assertEquals(assertThrows(() => UnixSocket.connect(path), OsError).code, "ENOENT");
  using listener = Deno.listen({ transport: "unix", path });
  using socket = UnixSocket.connect(path);
  assertEquals(socket.send(bytesOf("hello")), 5);
  assertThrows(() => UnixSocket.connect("x".repeat(200)), RangeError, "107");
  assertEquals((listener.addr as Deno.UnixAddr).path, path);
});

Deno.test("watchFd tells of what arrives, as long as it is asked to, and then leaves nothing behind", async () => {
  const before = openFds();
  {
    const [one, other] = UnixSocket.pair("seqpacket");
    using _one = one;
    using _other = other;
    const into = new Uint8Array(10);
    const seen: string[] = [];
    let wake = () => {};
    using watch = watchFd(other.fd, Poll.IN, () => {
      const received = other.receive(into);
      seen.push(text(into.subarray(0, received?.length)));
      if (received?.length === 0) watch[Symbol.dispose]();
      wake();
    });
    for (const message of ["one", "two", ""]) {
      const { promise, resolve } = Promise.withResolvers<void>();
      wake = resolve;
      if (message === "") one[Symbol.dispose]();
      else one.send(bytesOf(message));
      await promise;
    }
    assertEquals(seen, ["one", "two", ""]);
  }
  for (let i = 0; i < 100 && openFds() !== before; i++) await new Promise((resolve) => setTimeout(resolve, 5));
  assertEquals(openFds(), before);
});

Deno.test("ProcessHandle knows when a process has ended", async () => {
  const child = new Deno.Command("sleep", { args: ["100"] }).spawn();
  using handle = new ProcessHandle(child.pid);
  assert(handle.isAlive);
  const { promise, resolve } = Promise.withResolvers<void>();
  using watch = watchFd(handle.fd, Poll.IN, () => {
    watch[Symbol.dispose]();
    resolve();
  });
  child.kill("SIGKILL");
  await promise;
  assert(!handle.isAlive);
  await child.status;
  assertEquals(assertThrows(() => new ProcessHandle(child.pid), OsError).code, "ESRCH");
});

testUnless(noBash, "a socket is inherited while it is said to be, and by nobody else", async () => {
  const [one, other] = UnixSocket.pair("stream");
  using _one = one;
  using _other = other;
  other.inheritable = true;
  const spawn = () =>
    new Deno.Command("bash", { args: ["-c", `echo hi >&${other.fd}`], stderr: "null" }).spawn().status;
  const first = spawn();
  other.inheritable = false;
  assertEquals((await first).success, true);
  assertEquals((await spawn()).success, false);
  assertEquals(one.receive(new Uint8Array(10))?.length, 3);
  assertEquals(libc().sys.getpid(), Deno.pid);
});
