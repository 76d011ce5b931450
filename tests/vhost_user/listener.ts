/**
 * Sockets that somebody listens at. The package itself only ever connects.
 *
 * @module
 */

import { O_CLOEXEC } from "../../ffi/os/mman.ts";
import { UnixSocket } from "../../ffi/os/socket.ts";

const AF_UNIX = 1;
const SOCK_STREAM = 1;

const c = Deno.dlopen("libc.so.6", {
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  bind: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  listen: { parameters: ["i32", "i32"], result: "i32" },
  accept4: { parameters: ["i32", "pointer", "pointer", "i32"], result: "i32" },
  close: { parameters: ["i32"], result: "i32" },
}).symbols;

/** A socket bound to a path that lets others connect. */
export class Listener implements Disposable {
  readonly fd: number;
  readonly #path: string;

  constructor(path: string, backlog = 16) {
    this.#path = path;
    const name = new TextEncoder().encode(path);
    const address = new Uint8Array(2 + name.length + 1);
    address[0] = AF_UNIX;
    address.set(name, 2);
    this.fd = c.socket(AF_UNIX, SOCK_STREAM | O_CLOEXEC, 0);
    if (this.fd < 0 || c.bind(this.fd, address, address.length) !== 0 || c.listen(this.fd, backlog) !== 0) {
      throw new Error(`Cannot listen at ${path}`);
    }
  }

  /** Lets the next one in; blocks until there is one. */
  accept(): UnixSocket {
    const fd = c.accept4(this.fd, null, null, O_CLOEXEC);
    if (fd < 0) throw new Error("accept4 failed");
    return UnixSocket.own(fd);
  }

  [Symbol.dispose](): void {
    c.close(this.fd);
    try {
      Deno.removeSync(this.#path);
    } catch {
      // Somebody else has taken the path over.
    }
  }
}
