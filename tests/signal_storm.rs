//! Signals at any instruction of the stub, nested as deep as they come, change nothing of the guest.
#![allow(unsafe_code)]

#[path = "common/adversary.rs"]
mod adversary;

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use adversary::{DATA, Random, context, expect_call, guest, platform};
use iced_x86::code_asm as x;
use systrap::{AddressSpace, Event, GuestAddr, Protection};

fn stub_thread(space: &AddressSpace) -> i32 {
    fs::read_dir(format!("/proc/{}/task", space.pid()))
        .expect("its threads")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .find(|tid| *tid != space.pid())
        .expect("a stub thread")
}

/// Runs `work` under a storm of the interrupt signal, with pauses of 1 to 50 µs between them.
fn under_storm(space: &AddressSpace, signals: &AtomicU64, work: impl FnOnce()) {
    let (stop, pid, tid) = (AtomicBool::new(false), space.pid(), stub_thread(space));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random::new(3);
            while !stop.load(Ordering::Relaxed) {
                // SAFETY: signals a thread of a child process that lives while the storm lasts.
                unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, libc::SIGCHLD) };
                signals.fetch_add(1, Ordering::Relaxed);
                // Faster than one can be handled they would fill the signal stack: no sender in this library is.
                for _ in 0..200 + random.below(2_000) {
                    std::hint::spin_loop();
                }
            }
        });
        let _stop = StopAtEnd(&stop);
        work();
    });
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn calls_keep_their_registers_under_a_storm() {
    let platform = platform();
    let space = guest(&platform, |a| {
        let mut top = a.create_label();
        let mut code = |a: &mut x::CodeAssembler| -> Result<(), iced_x86::IcedError> {
            a.xor(x::ebx, x::ebx)?;
            a.set_label(&mut top)?;
            a.inc(x::rbx)?;
            a.mov(x::eax, 39)?;
            a.mov(x::rdi, x::rbx)?;
            a.lea(x::rsi, x::qword_ptr(x::rbx + 1))?;
            a.lea(x::rdx, x::qword_ptr(x::rbx + 2))?;
            a.lea(x::r10, x::qword_ptr(x::rbx + 3))?;
            a.lea(x::r8, x::qword_ptr(x::rbx + 4))?;
            a.lea(x::r9, x::qword_ptr(x::rbx + 5))?;
            a.mov(x::rbp, x::rbx)?;
            a.mov(x::r12, x::rbx)?;
            a.vmovq(x::xmm7, x::rbx)?;
            a.syscall()?;
            // What must be as before: the sum of all differences goes to r15.
            for register in [x::rbp, x::r12, x::rdi] {
                a.sub(register, x::rbx)?;
                a.or(x::r15, register)?;
            }
            a.vmovq(x::rcx, x::xmm7)?;
            a.sub(x::rcx, x::rbx)?;
            a.or(x::r15, x::rcx)?;
            // The result is the number of the round.
            a.sub(x::rax, x::rbx)?;
            a.or(x::r15, x::rax)?;
            a.jmp(top)
        };
        code(a).expect("code");
    });
    let mut context = context(&platform);
    expect_call(context.switch(&space).expect("a switch"));
    context.set_return(1);
    let signals = AtomicU64::new(0);
    let mut rounds = 1_u64;
    under_storm(&space, &signals, || {
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline {
            match context.switch(&space).unwrap_or_else(|error| panic!("round {rounds}: {error}")) {
                Event::Syscall(call) => {
                    rounds += 1;
                    assert_eq!(call.args, std::array::from_fn(|i| rounds + i as u64), "round {rounds}");
                    context.set_return(rounds as i64);
                }
                other => panic!("round {rounds}: {other:?}"),
            }
            if rounds.is_multiple_of(64) {
                context.pull_full_state().expect("the state");
                assert_eq!(context.registers().r15, 0, "a register was wrong before round {rounds}");
                // Resumes by the other way back.
                context.full_state_changed();
            }
        }
    });
    println!("{rounds} calls under {} signals", signals.into_inner());
    assert!(rounds > 100, "the guest hardly ran: {rounds} calls");
}

#[test]
fn copies_by_the_stub_survive_a_storm_and_stop_at_a_hole() {
    let platform = platform();
    let space = guest(&platform, |a| a.syscall().expect("code"));
    let mut first = context(&platform);
    expect_call(first.switch(&space).expect("a switch"));
    drop(first);
    let hole = DATA + 0x8000;
    space.unmap(GuestAddr::new(hole), 4096).expect("a hole");
    space.map_anonymous(GuestAddr::new(hole + 4096), 4096, Protection::READ).expect("a read-only page");
    let signals = AtomicU64::new(0);
    under_storm(&space, &signals, || {
        let copier = |space: &AddressSpace| {
            deny_process_vm();
            for round in 0..400_u32 {
                let data: Vec<u8> = (0..6000_u32).map(|i| (i * 7 + round) as u8).collect();
                space.write(GuestAddr::new(DATA + 123), &data).expect("a copy to the guest");
                let mut back = vec![0; 6000];
                space.read(GuestAddr::new(DATA + 123), &mut back).expect("a copy from the guest");
                assert!(back == data, "round {round}");
                let before = GuestAddr::new(hole - 700);
                assert_eq!(space.write(before, &[1; 2000]).expect_err("a hole").copied, 700);
                assert_eq!(space.read(before, &mut [0; 2000]).expect_err("a hole").copied, 700);
                let read_only = GuestAddr::new(hole + 4096);
                assert_eq!(space.write(read_only, &[1]).expect_err("read-only").copied, 0);
            }
        };
        std::thread::scope(|scope| scope.spawn(|| copier(&space)).join().expect("no copy goes wrong"));
    });
    println!("1,200 copies by the stub under {} signals", signals.into_inner());
}

/// Makes process_vm_readv(2) and process_vm_writev(2) fail with EPERM in this thread, as Yama does.
fn deny_process_vm() {
    let op = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        op(0x20, 0, 0, 0),
        op(0x15, 2, 0, libc::SYS_process_vm_readv as u32),
        op(0x15, 1, 0, libc::SYS_process_vm_writev as u32),
        op(0x06, 0, 0, 0x7fff_0000),
        op(0x06, 0, 0, 0x0005_0000 | libc::EPERM as u32),
    ];
    let program = libc::sock_fprog { len: 5, filter: program.as_mut_ptr() };
    // SAFETY: the program outlives the calls.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::syscall(libc::SYS_seccomp, 1, 0, &raw const program), 0, "a filter");
    }
}
