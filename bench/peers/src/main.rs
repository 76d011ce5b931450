//! The benchmark rows as a VMM in Rust would do them: on the crates vm-memory and kvm-ioctls, as far as those go.
//!
//! - `peers` reads lines `<row> <count>`, does the row that often, and prints how many nanoseconds it took.
//! - `peers rows` prints the names of the rows.
//! - `peers first-exit` starts the smallest virtual machine and ends at its first exit.
//!
//! vm-memory maps each region at an address of the kernel's choice and has no way to change a region in place, so a
//! replacement here is slot away, region away, region in, slot in: a running guest sees the gap.

use std::fs::File;
use std::hint::black_box;
use std::io::BufRead;
use std::os::fd::FromRawFd;
use std::sync::Arc;
use std::time::Instant;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
const PAGE: usize = 4 * KIB;
const REGION: u64 = 256 * MIB as u64;
const FILE_SIZE: usize = 16 * MIB;
const AT: u64 = REGION + 2 * MIB as u64;

fn memory_file(size: u64) -> File {
    // SAFETY: a C string, and a descriptor that is new.
    let fd = unsafe {
        libc::memfd_create(
            c"peers".as_ptr(),
            libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
        )
    };
    assert!(fd >= 0, "memfd_create");
    // SAFETY: as above.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size).expect("ftruncate");
    // SAFETY: numbers only.
    let sealed = unsafe {
        libc::fcntl(
            fd,
            libc::F_ADD_SEALS,
            libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL,
        )
    };
    assert!(sealed == 0, "fcntl");
    file
}

/// A VM and its memory map.
struct Machine {
    vm: VmFd,
    memory: GuestMemoryMmap,
    file: Arc<File>,
}

impl Machine {
    fn new(kvm: &Kvm, file: Arc<File>) -> Self {
        Machine {
            vm: kvm.create_vm().expect("KVM_CREATE_VM"),
            memory: GuestMemoryMmap::new(),
            file,
        }
    }

    fn set_slot(&self, slot: u32, gpa: u64, size: u64, hva: u64) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: hva,
        };
        // SAFETY: the memory stays mapped until the slot is deleted.
        unsafe { self.vm.set_user_memory_region(region) }.expect("KVM_SET_USER_MEMORY_REGION");
    }

    fn insert(&mut self, slot: u32, gpa: u64, size: usize, offset: u64) {
        let part = FileOffset::from_arc(self.file.clone(), offset);
        let region =
            GuestRegionMmap::from_range(GuestAddress(gpa), size, Some(part)).expect("mmap");
        let hva = region.as_ptr() as u64;
        self.memory = self
            .memory
            .insert_region(Arc::new(region))
            .expect("insert_region");
        self.set_slot(slot, gpa, size as u64, hva);
    }

    fn remove(&mut self, slot: u32, gpa: u64, size: usize) {
        self.set_slot(slot, gpa, 0, 0);
        let (memory, region) = self
            .memory
            .remove_region(GuestAddress(gpa), size as u64)
            .expect("remove_region");
        self.memory = memory;
        assert!(region.len() == size as u64);
    }

    fn with_slot(&mut self, size: usize) {
        self.insert(0, AT, size, 0);
        self.remove(0, AT, size);
    }

    fn replace(&mut self, size: usize) {
        self.remove(0, AT, size);
        self.insert(0, AT, size, 2 * MIB as u64);
        self.remove(0, AT, size);
        self.insert(0, AT, size, 0);
    }

    fn region_64(&mut self) {
        for i in 0..64 {
            self.insert(
                i,
                REGION + i as u64 * PAGE as u64,
                PAGE,
                (63 - i as u64) * PAGE as u64,
            );
        }
        for i in 0..64 {
            self.remove(i, REGION + i as u64 * PAGE as u64, PAGE);
        }
    }

    fn ram(&mut self) {
        let size = 512 * MIB;
        let file = FileOffset::new(memory_file(size as u64), 0);
        let memory: GuestMemoryMmap =
            GuestMemoryMmap::from_ranges_with_files([(GuestAddress(1 << 30), size, Some(file))])
                .expect("mmap");
        let hva = vm_memory::GuestMemoryBackend::iter(&memory)
            .next()
            .expect("a region")
            .as_ptr() as u64;
        self.set_slot(1, 1 << 30, size as u64, hva);
        self.set_slot(1, 1 << 30, 0, hva);
    }
}

/// A VM whose real-mode guest writes port 0x10 for ever.
struct Guest {
    vcpu: VcpuFd,
    _machine: Machine,
}

impl Guest {
    fn new(kvm: &Kvm) -> Self {
        let size = 64 * KIB;
        let mut machine = Machine::new(kvm, Arc::new(memory_file(size as u64)));
        machine.insert(0, 0, size, 0);
        let code = [0xe6, 0x10, 0xeb, 0xfc]; // out 0x10, al; jmp to the out
        machine
            .memory
            .write_slice(&code, GuestAddress(0x1000))
            .expect("write");
        let vcpu = machine.vm.create_vcpu(0).expect("KVM_CREATE_VCPU");
        let mut sregs = vcpu.get_sregs().expect("KVM_GET_SREGS");
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        vcpu.set_sregs(&sregs).expect("KVM_SET_SREGS");
        let mut regs = vcpu.get_regs().expect("KVM_GET_REGS");
        regs.rip = 0x1000;
        regs.rflags = 2;
        vcpu.set_regs(&regs).expect("KVM_SET_REGS");
        Guest {
            vcpu,
            _machine: machine,
        }
    }

    fn exit(&mut self) {
        match self.vcpu.run().expect("KVM_RUN") {
            VcpuExit::IoOut(0x10, _) => {}
            other => panic!("unexpected exit {other:?}"),
        }
    }
}

#[rustfmt::skip]
const ROWS: [&str; 20] = [
    "slot-4k", "slot-64k", "slot-2m", "replace-4k", "replace-2m", "region-1", "region-64", "switch", "ram-512m",
    "read-4", "read-64", "read-4k", "read-4k-far", "read-1m-far",
    "write-4", "write-64", "write-4k", "write-4k-far", "write-1m-far", "exits",
];

fn timed(count: u32, mut once: impl FnMut()) -> u128 {
    let start = Instant::now();
    for _ in 0..count {
        once();
    }
    start.elapsed().as_nanos()
}

/// Everything that rows work on.
struct Bench {
    kvm: Option<Kvm>,
    machine: Option<Machine>,
    file: Arc<File>,
    memory: Option<GuestMemoryMmap>,
    guest: Option<Guest>,
}

impl Bench {
    fn run(&mut self, row: &str, count: u32) -> u128 {
        let mut words = row.split('-');
        let name = words.next().unwrap_or("");
        let size = match words.next() {
            Some("4") => 4,
            Some("64") => 64,
            Some("4k") => 4 * KIB,
            Some("64k") => 64 * KIB,
            Some("1m") => MIB,
            _ => 2 * MIB,
        };
        let far = words.next() == Some("far");
        if name == "read" || name == "write" {
            let file = self.file.clone();
            let memory = self.memory.get_or_insert_with(|| touched(file));
            return access(name, size, far, count, memory);
        }
        let kvm = self.kvm.as_ref().expect("/dev/kvm");
        let file = self.file.clone();
        let machine = self.machine.get_or_insert_with(|| Machine::new(kvm, file));
        match name {
            "slot" => timed(count, || machine.with_slot(size)),
            "region" if row == "region-1" => timed(count, || machine.with_slot(PAGE)),
            "region" => timed(count, || machine.region_64()),
            "replace" | "switch" => {
                machine.insert(0, AT, size, 0);
                let took = timed(count, || machine.replace(size));
                machine.remove(0, AT, size);
                took
            }
            "ram" => timed(count, || machine.ram()),
            "exits" => {
                let guest = self.guest.get_or_insert_with(|| Guest::new(kvm));
                timed(count, || guest.exit())
            }
            _ => panic!("There is no row {row:?}"),
        }
    }
}

/// Guest memory whose pages are there.
fn touched(file: Arc<File>) -> GuestMemoryMmap {
    let part = FileOffset::from_arc(file, 0);
    let ranges = [(GuestAddress(REGION), FILE_SIZE, Some(part))];
    let memory = GuestMemoryMmap::from_ranges_with_files(ranges).expect("mmap");
    memory
        .write_slice(&vec![1u8; FILE_SIZE], GuestAddress(REGION))
        .expect("write");
    memory
}

fn access(name: &str, size: usize, far: bool, count: u32, memory: &GuestMemoryMmap) -> u128 {
    let mut buffer = vec![1u8; size];
    let mut turn = 0usize;
    let mut at = || {
        turn += 1;
        GuestAddress(
            REGION
                + if far {
                    turn * size % FILE_SIZE
                } else {
                    (turn & 15) * 64
                } as u64,
        )
    };
    match (name, size) {
        ("read", 4) => timed(count, || {
            black_box(memory.read_obj::<u32>(at()).expect("read"));
        }),
        ("write", 4) => timed(count, || {
            memory.write_obj(black_box(1u32), at()).expect("write")
        }),
        ("read", _) => timed(count, || {
            memory
                .read_slice(black_box(&mut buffer), at())
                .expect("read")
        }),
        _ => timed(count, || {
            memory.write_slice(black_box(&buffer), at()).expect("write")
        }),
    }
}

fn main() {
    let first = std::env::args().nth(1);
    if first.as_deref() == Some("rows") {
        println!("{}", ROWS.join("\n"));
        return;
    }
    let kvm = Kvm::new();
    if first.as_deref() == Some("first-exit") {
        Guest::new(&kvm.expect("/dev/kvm")).exit();
        return;
    }
    let mut bench = Bench {
        kvm: kvm.ok(),
        machine: None,
        file: Arc::new(memory_file(FILE_SIZE as u64)),
        memory: None,
        guest: None,
    };
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("stdin");
        let (row, count) = line.split_once(' ').expect("<row> <count>");
        let count = count.trim().parse().expect("a count");
        println!("{}", bench.run(row, count));
    }
}
