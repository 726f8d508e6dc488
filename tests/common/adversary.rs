//! What a hostile guest has at hand, for tests: the slots of its address space as shared memory, code of its
//! choice, and a stub thread that it drives without its supervisor.
#![allow(unsafe_code)]
#![allow(dead_code, reason = "each test crate uses its own part")]

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::linux::fs::MetadataExt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use iced_x86::code_asm::CodeAssembler;
use systrap::{AddressSpace, Context, Event, GuestAddr, Options, PAGE_SIZE, Protection, Systrap};
use systrap_stub::layout::{SLOT_SIZE, SYSMSG};
use systrap_stub::sysmsg::{Sysmsg, gregs};
use systrap_stub::wire;

/// Where test code lies in a guest, and where its data lies.
pub const CODE: u64 = 0x1000_0000;
pub const DATA: u64 = 0x2000_0000;
pub const DATA_LEN: u64 = 0x10_0000;

pub fn platform() -> Systrap {
    Systrap::new(Options::new()).expect("a platform")
}

/// Assembles code for an address.
pub fn assemble(at: u64, build: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let mut code = CodeAssembler::new(64).expect("an assembler");
    build(&mut code);
    code.assemble(at).expect("code that assembles")
}

/// An address space with `code` at [`CODE`] and writable memory at [`DATA`].
pub fn guest(platform: &Systrap, build: impl FnOnce(&mut CodeAssembler)) -> AddressSpace {
    let space = platform.new_address_space().expect("an address space");
    load(&space, build);
    space
}

pub fn load(space: &AddressSpace, build: impl FnOnce(&mut CodeAssembler)) {
    let code = assemble(CODE, build);
    let len = (code.len() as u64).next_multiple_of(PAGE_SIZE);
    let all = Protection { read: true, write: true, execute: true };
    space.map_anonymous(GuestAddr::new(CODE), len, all).expect("memory for code");
    space.map_anonymous(GuestAddr::new(DATA), DATA_LEN, Protection::READ_WRITE).expect("memory for data");
    space.write(GuestAddr::new(CODE), &code).expect("copying code");
}

/// A context at [`CODE`] with its stack at the end of the data.
pub fn context(platform: &Systrap) -> Context {
    let mut context = platform.new_context().expect("a context");
    context.registers_mut().rip = CODE;
    context.registers_mut().rsp = DATA + DATA_LEN - 64;
    context
}

pub fn expect_call(event: Event) -> systrap::Syscall {
    match event {
        Event::Syscall(call) => call,
        other => panic!("expected a call, got {other:?}"),
    }
}

/// Lines of `/proc/PID/maps` that mention `name`.
pub fn maps_of(pid: i32, name: &str) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the maps of a stub process");
    maps.lines().filter(|line| line.contains(name)).map(str::to_owned).collect()
}

/// First address of a line of `/proc/PID/maps`.
pub fn start_of(line: &str) -> u64 {
    u64::from_str_radix(line.split('-').next().expect("a range"), 16).expect("an address")
}

/// Where the stub lies in an address space.
pub fn stub_base(space: &AddressSpace) -> u64 {
    start_of(maps_of(space.pid(), "systrap-stub").first().expect("the stub's text"))
}

/// The slots of an address space, as its guest threads see them: shared and writable.
#[derive(Debug)]
pub struct Slots {
    start: *mut u8,
    len: usize,
    pub base: u64,
}

// SAFETY: a shared mapping that is only accessed through atomics.
unsafe impl Send for Slots {}
// SAFETY: as above.
unsafe impl Sync for Slots {}

impl Slots {
    /// Maps the slots of `space` once more, through the descriptor that this process holds.
    pub fn of(space: &AddressSpace) -> Self {
        let line = maps_of(space.pid(), "systrap-sysmsg").pop().expect("the slots are mapped");
        let inode: u64 = line.split_whitespace().nth(4).expect("an inode").parse().expect("a number");
        let file = fs::read_dir("/proc/self/fd")
            .expect("own descriptors")
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("systrap-sysmsg"))
            })
            .find_map(|path| {
                let file = File::options().read(true).write(true).open(path).ok()?;
                (file.metadata().ok()?.st_ino() == inode).then_some(file)
            })
            .expect("the supervisor holds the memfd of the slots");
        let len = usize::try_from(file.metadata().expect("a size").len()).expect("a size");
        // SAFETY: a fresh mapping of a file that never shrinks.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED, "mapping the slots");
        Self { start: start.cast(), len, base: stub_base(space) }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn slot(&self, index: u64) -> &Sysmsg {
        let offset = usize::try_from(index * SLOT_SIZE).expect("an offset");
        assert!(offset + size_of::<Sysmsg>() <= self.len, "slot {index} does not exist");
        // SAFETY: in bounds, 64 KiB-aligned, atomics only, mapped while self lives.
        unsafe { &*self.start.add(offset).cast::<Sysmsg>() }
    }

    /// Any word of the slots.
    pub fn word(&self, index: usize) -> &std::sync::atomic::AtomicU64 {
        assert!(index < self.len / 8);
        // SAFETY: in bounds and aligned; as above.
        unsafe { &*self.start.cast::<std::sync::atomic::AtomicU64>().add(index) }
    }

    /// The address of a slot in the stub process.
    pub fn addr(&self, index: u64) -> u64 {
        self.base + SYSMSG + index * SLOT_SIZE
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: our own mapping; the references borrow self.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

pub fn futex_wake(word: &std::sync::atomic::AtomicU32) {
    // SAFETY: FUTEX_WAKE only uses the address.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// A pooled stub thread that somebody other than the supervisor drives by writing its slot, as a sibling
/// thread of a hostile guest can.
#[derive(Debug)]
pub struct Puppet {
    pub slots: Slots,
    pub slot: u64,
    tid: i32,
    pid: i32,
}

/// The registers that a puppet begins with, in the order of `struct sigcontext`.
pub type Words = [u64; systrap_stub::sysmsg::SIGCONTEXT_WORDS];

/// Segments of 64-bit user code, as `struct sigcontext` holds them.
pub const SEGMENTS: u64 = 0x33 | 0x2b << 48;

impl Puppet {
    /// Runs one call in `space` (whose code begins with a `syscall`) and takes over the stub thread that the
    /// context leaves behind.
    pub fn new(platform: &Systrap, space: &AddressSpace) -> Self {
        let mut context = context(platform);
        expect_call(context.switch(space).expect("a switch"));
        drop(context);
        Self::of_parked(space)
    }

    /// Takes over the one stub thread of `space`, which nobody runs.
    pub fn of_parked(space: &AddressSpace) -> Self {
        let tid = fs::read_dir(format!("/proc/{}/task", space.pid()))
            .expect("the threads of the stub")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .find(|tid| *tid != space.pid())
            .expect("a stub thread");
        let slots = Slots::of(space);
        slots.slot(1).spin.store(20_000, Ordering::Relaxed);
        Self { slots, slot: 1, tid, pid: space.pid() }
    }

    fn sysmsg(&self) -> &Sysmsg {
        self.slots.slot(self.slot)
    }

    /// Lets it run with these registers; returns the event it publishes, `None` if it does not in time.
    pub fn run(&self, words: &Words, limit: Duration) -> Option<u32> {
        self.run_with_gs(words, 0, limit)
    }

    /// As [`Puppet::run`], with a %gs base.
    pub fn run_with_gs(&self, words: &Words, gs_base: u64, limit: Duration) -> Option<u32> {
        let sysmsg = self.sysmsg();
        for (word, shared) in words.iter().zip(&sysmsg.state.sigcontext) {
            shared.store(*word, Ordering::Relaxed);
        }
        sysmsg.fs_base.store(0, Ordering::Relaxed);
        sysmsg.gs_base.store(gs_base, Ordering::Relaxed);
        self.publish(wire::RESUME_FULL);
        self.wait(wire::RESUME_FULL, limit)
    }

    /// Lets it make a host call of its filter; `None` if it was denied.
    pub fn execute(&self, nr: i64, args: [u64; 6]) -> Option<i64> {
        let line = &self.sysmsg().line;
        line.nr.store(nr as u32, Ordering::Relaxed);
        for (shared, arg) in line.args.iter().zip(args) {
            shared.store(arg, Ordering::Relaxed);
        }
        self.publish(wire::EXECUTE);
        let event = self.wait(wire::EXECUTE, Duration::from_secs(10)).expect("an answer of the puppet");
        if event == wire::DONE {
            return Some(line.args[0].load(Ordering::Relaxed) as i64);
        }
        // The denial's signal frame lies on the signal stack still, and each more lies below it.
        assert!(self.recover(), "the puppet is lost after {event}");
        None
    }

    pub fn publish(&self, reply: u32) {
        let sysmsg = self.sysmsg();
        sysmsg.line.state.swap(reply, Ordering::SeqCst);
        if sysmsg.stub_sleeps.load(Ordering::SeqCst) != 0 {
            futex_wake(&sysmsg.line.state);
        }
    }

    pub fn wait(&self, reply: u32, limit: Duration) -> Option<u32> {
        let started = Instant::now();
        loop {
            for _ in 0..2_000 {
                let state = self.sysmsg().line.state.load(Ordering::Acquire);
                if state != reply && !wire::is_reply(state) {
                    return Some(state);
                }
                std::hint::spin_loop();
            }
            if started.elapsed() > limit {
                return None;
            }
            std::thread::yield_now();
        }
    }

    /// Brings a puppet back that went astray: its next look at its state leads it to unmapped guest memory.
    pub fn recover(&self) -> bool {
        let mut words = [0; systrap_stub::sysmsg::SIGCONTEXT_WORDS];
        words[gregs::RIP] = 0x7000;
        words[gregs::RFLAGS] = 0x202;
        words[gregs::CSGSFSSS] = SEGMENTS;
        for _ in 0..10 {
            // SAFETY: sends a signal to a thread of a child process.
            unsafe { libc::syscall(libc::SYS_tgkill, self.pid, self.tid, libc::SIGCHLD) };
            futex_wake(&self.sysmsg().line.state);
            if self.run(&words, Duration::from_millis(5)).is_some() {
                return true;
            }
        }
        false
    }
}

/// A small reproducible source of random words (xorshift64*).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.word() % limit
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).expect("an index")]
    }
}
