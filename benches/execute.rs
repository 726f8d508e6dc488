//! What it costs to let a guest's stub thread make a host call for it: changes of mappings, private futexes, small copies.
//! Prints minima of many short batches, natively and under the platform in the same run.
#![allow(unsafe_code)]

use std::time::Instant;

use iced_x86::code_asm::{CodeAssembler, eax, edi, edx, esi, r12, r12d};
use systrap::{
    AddressSpace, Context, Entry, Event, GuestAddr, Options, PAGE_SIZE, PassedCalls, Patching, Protection,
    Systrap,
};

const CODE: GuestAddr = GuestAddr::new(0x40_0000);
const AREA: GuestAddr = GuestAddr::new(0x1000_0000);
const LEN: u64 = 16 * PAGE_SIZE;
const BATCHES: usize = 400;
const BATCH: u32 = 50;

/// The best batch: nanoseconds for one turn.
fn best(mut turn: impl FnMut()) -> f64 {
    let batches = (0..BATCHES).map(|_| {
        let begun = Instant::now();
        (0..BATCH).for_each(|_| turn());
        begun.elapsed().as_secs_f64() * 1e9 / f64::from(BATCH)
    });
    batches.fold(f64::INFINITY, f64::min)
}

struct Guest {
    space: AddressSpace,
    context: Context,
}

impl Guest {
    /// A guest that makes null calls for ever.
    fn new(patching: Patching) -> Self {
        let platform = Systrap::new(Options::new().patching(patching)).expect("a platform");
        let space = platform.new_address_space().expect("an address space");
        let mut a = CodeAssembler::new(64).expect("64-bit code");
        let mut again = a.create_label();
        (|| {
            (0..64).try_for_each(|_| a.nop())?;
            a.set_label(&mut again)?;
            a.mov(eax, 1000)?;
            a.syscall()?;
            a.jmp(again)
        })()
        .expect("valid instructions");
        let code = a.assemble(CODE.raw()).expect("encodable");
        space.map_anonymous(CODE, PAGE_SIZE, Protection::READ_WRITE).expect("memory");
        space.write(CODE, &code).expect("writable");
        space.protect(CODE, PAGE_SIZE, Protection::READ_EXECUTE).expect("a mapping");
        let mut context = platform.new_context().expect("a context");
        context.registers_mut().rip = CODE.raw();
        let mut guest = Self { space, context };
        guest.call();
        let expected = if patching == Patching::Off { Entry::Trapped } else { Entry::Patched };
        assert_eq!(guest.call(), expected, "the way the calls come");
        guest
    }

    fn call(&mut self) -> Entry {
        match self.context.switch(&self.space).expect("a switch") {
            Event::Syscall(call) => call.entry,
            other => panic!("a call was expected, not {other:?}"),
        }
    }
}

fn row(what: &str, ns: f64, native: f64) {
    println!("  {what:<52} {ns:>9.0} ns   {:>6.2} × native", ns / native);
}

fn native_pair() -> f64 {
    let (prot, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    best(|| {
        // SAFETY: a new mapping that nobody else knows, and its removal.
        unsafe {
            let at = libc::mmap(std::ptr::null_mut(), LEN as usize, prot, flags, -1, 0);
            libc::munmap(at, LEN as usize);
        }
    })
}

fn native_wake() -> f64 {
    let word = std::sync::atomic::AtomicU32::new(0);
    let op = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    best(|| {
        // SAFETY: only the address of a live word is used.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, 1) };
    })
}

fn mappings(patching: Patching, native: f64) {
    let mut guest = Guest::new(patching);
    let null = best(|| {
        guest.call();
    });
    row("null call", null, native);
    let prot = Protection::READ_WRITE;
    let pair = best(|| {
        guest.space.map_anonymous(AREA, LEN, prot).expect("mapped");
        guest.context.set_return(0);
        guest.call();
        guest.space.unmap(AREA, LEN).expect("unmapped");
        guest.context.set_return(0);
        guest.call();
    });
    row("mmap + munmap: by the leader", pair, native);
    let pair = best(|| {
        guest.context.memory(&guest.space).map_anonymous(AREA, LEN, prot).expect("mapped");
        guest.context.set_return(0);
        guest.call();
        guest.context.memory(&guest.space).unmap(AREA, LEN).expect("unmapped");
        guest.context.set_return(0);
        guest.call();
    });
    row("mmap + munmap: by the stub thread, at once", pair, native);
    let pair = best(|| {
        guest.context.memory(&guest.space).on_return().map_anonymous(AREA, LEN, prot).expect("mapped");
        guest.call();
        guest.context.memory(&guest.space).on_return().unmap(AREA, LEN).expect("unmapped");
        guest.call();
    });
    row("mmap + munmap: by the stub thread, on return", pair, native);
}

fn futexes(patching: Patching, native: f64) {
    let mut guest = Guest::new(patching);
    let args = [CODE.raw(), (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as u64, 1, 0, 0, 0];
    let wake = best(|| {
        assert!(guest.context.execute_futex(args));
        guest.call();
    });
    row("futex wake: by the stub thread, on return", wake, native);
}

/// A guest that makes [`PASSED`] futex calls itself for each call that its supervisor sees.
fn passed(native: f64) {
    const PASSED: u32 = 200;
    let platform = Systrap::new(Options::new().patching(Patching::Lazy)).expect("a platform");
    let space = platform.new_address_space().expect("an address space");
    let mut a = CodeAssembler::new(64).expect("64-bit code");
    let (mut again, mut inner) = (a.create_label(), a.create_label());
    (|| {
        (0..64).try_for_each(|_| a.nop())?;
        a.set_label(&mut again)?;
        a.mov(r12d, PASSED)?;
        a.set_label(&mut inner)?;
        a.mov(edi, CODE.raw() as u32)?;
        a.mov(esi, (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as u32)?;
        a.mov(edx, 1)?;
        a.mov(eax, libc::SYS_futex as u32)?;
        a.syscall()?;
        a.dec(r12)?;
        a.jnz(inner)?;
        a.mov(eax, 1000)?;
        a.syscall()?;
        a.jmp(again)
    })()
    .expect("valid instructions");
    let code = a.assemble(CODE.raw()).expect("encodable");
    space.map_anonymous(CODE, PAGE_SIZE, Protection::READ_WRITE).expect("memory");
    space.write(CODE, &code).expect("writable");
    space.protect(CODE, PAGE_SIZE, Protection::READ_EXECUTE).expect("a mapping");
    let mut context = platform.new_context().expect("a context");
    context.registers_mut().rip = CODE.raw();
    let mut guest = Guest { space, context };
    (0..3 * PASSED).for_each(|_| {
        guest.context.switch(&guest.space).expect("a switch");
    });
    guest.context.pass_in_stub(PassedCalls::ALL);
    let turn = best(|| {
        guest.call();
    });
    row("futex wake: passed on by the syshandler", turn / f64::from(PASSED), native);
}

/// Copies of `len` bytes in and out.
fn copies(patching: Patching, len: usize) {
    let mut guest = Guest::new(patching);
    guest.space.map_anonymous(AREA, PAGE_SIZE, Protection::READ_WRITE).expect("memory");
    let mut bytes = vec![1; len];
    guest.space.write(AREA, &bytes).expect("writable");
    let null = best(|| {
        guest.context.set_return(0);
        guest.call();
    });
    let print =
        |what: &str, ns: f64| println!("  {len:>4} bytes: {what:<46} {ns:>7.0} ns   null call {null:.0} ns");
    let ns = best(|| {
        guest.space.read(AREA, &mut bytes).expect("readable");
        guest.call();
    });
    print("read by process_vm_readv, then the call", ns);
    let ns = best(|| {
        guest.space.write(AREA, &bytes).expect("writable");
        guest.context.set_return(0);
        guest.call();
    });
    print("write by process_vm_writev, then the call", ns);
    let ns = best(|| {
        assert!(guest.context.set_return_with(0, AREA, &bytes));
        guest.call();
    });
    print("write with the result of the call", ns);
}

fn main() {
    let (pair, wake) = (native_pair(), native_wake());
    println!("minima of {BATCHES} batches of {BATCH}; the area has {} pages", LEN / PAGE_SIZE);
    println!("native: mmap + munmap {pair:.0} ns, futex wake {wake:.0} ns");
    for (name, patching) in [("patched", Patching::Lazy), ("trapped", Patching::Off)] {
        println!("{name}, against the pair of calls:");
        mappings(patching, pair);
        println!("{name}, against the futex call:");
        futexes(patching, wake);
        if patching == Patching::Lazy {
            passed(wake);
        }
        println!("{name}, copies:");
        for len in [16, 64, 144, 256] {
            copies(patching, len);
        }
    }
}
