import { UnixSocket } from "../../ffi/os/socket.ts";
import { isThenable } from "../targets/sync.ts";

/**
 * Calls `spawn` with one end of a socket that a process can inherit while it runs.
 *
 * @returns What `spawn` returned, and the other end, which is the caller's.
 * @throws {TypeError} If `spawn` returns a promise: it would start the process when the descriptor is gone.
 * @throws {OsError} If the process has too many open files.
 */
export function spawnWithSocket<T>(spawn: (fd: number) => T): { readonly child: T; readonly socket: UnixSocket } {
  const [socket, theirs] = UnixSocket.pair("seqpacket");
  using stack = new DisposableStack();
  stack.use(socket);
  using _theirs = theirs;
  theirs.inheritable = true;
  const child = spawn(theirs.fd);
  if (isThenable(child)) {
    Promise.resolve(child).catch(() => {});
    throw new TypeError("The function that starts the process must not return a promise");
  }
  stack.move();
  return { child, socket };
}
