/// <reference lib="deno.worker" />
import { SyncRegionManagerClient } from "membacking";
import { VcpuRunner } from "membacking/kvm";

self.onmessage = async ({ data: { vcpu, port } }) => {
  using client = await SyncRegionManagerClient.connect(port);
  using runner = VcpuRunner.attach(vcpu);
  using bar = client.newDeviceMemory("bar 0", 0x1000);
  bar.map({ offset: 0, mappable: client.memfd("bar 0", 0x1000), length: 0x1000 });

  for (let exit = runner.run(); exit.kind !== "hlt"; exit = runner.run()) {
    if (exit.kind !== "io") throw new Error(`Unexpected exit: ${exit.kind}`);
    const gpa = new DataView(exit.data.buffer, exit.data.byteOffset).getUint32(0, true);
    bar.mapToGuest(gpa, true); // waits for the owner's answer; then the guest goes on
  }
  self.postMessage(client.memory.readUint32(bar.gpa ?? 0));
  self.close();
};
