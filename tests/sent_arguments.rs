//! What a call brings along: the bytes that an argument points to, if the stub can read them, and nothing else changes for
//! the guest.

#[path = "common/small_guest.rs"]
mod small_guest;

use std::sync::Arc;

use iced_x86::code_asm::{eax, qword_ptr, r10, r12, r13, rax, rbx, rdi, rdx, rsi};
use small_guest::{CODE, DATA, assemble, guest, next_call};
use systrap::{
    AddressSpace, Context, Entry, GuestAddr, Options, PAGE_SIZE, PassedCalls, Patching, Protection,
    SentArguments, Systrap,
};

const FIRST: u32 = 301;
const SECOND: u32 = 302;
const NEITHER: u32 = 303;
const REPORT: u32 = 304;
/// Behind the page at [`DATA`] there is nothing.
const HOLE: u64 = DATA.raw() + PAGE_SIZE;
/// Two readable addresses.
const TWO: [u64; 2] = [DATA.raw(), DATA.raw() + 64];
const FLAGS: u64 = 0x8d5 | 1 << 10 | 1 << 18;

/// A guest that for ever calls the number in the first word of its data with (r12, r13) and the flags in rbx, and reports
/// (result, flags, rdi, rsi) by another call.
fn code() -> Vec<u8> {
    assemble(|a| {
        let mut again = a.create_label();
        (|| {
            for _ in 0..64 {
                a.nop()?;
            }
            a.set_label(&mut again)?;
            for nr in [FIRST, SECOND, NEITHER] {
                a.mov(rdi, r12)?;
                a.mov(rsi, r13)?;
                a.push(rbx)?;
                a.popfq()?;
                a.mov(eax, nr)?;
                a.syscall()?;
                a.pushfq()?;
                a.pop(rdx)?;
                a.push(0x202)?;
                a.popfq()?;
                a.mov(r10, rsi)?;
                a.mov(rsi, rdx)?;
                a.mov(rdx, rdi)?;
                a.mov(rdi, rax)?;
                a.mov(eax, REPORT)?;
                a.syscall()?;
            }
            a.mov(rax, qword_ptr(iced_x86::code_asm::rsp - 8))?;
            a.jmp(again)
        })()
        .expect("valid instructions");
    })
}

struct Caller {
    platform: Systrap,
    space: AddressSpace,
    context: Context,
}

impl Caller {
    /// All of its sites are patched, and its first and second arguments are to be sent along.
    fn new() -> Self {
        let platform = Systrap::new(Options::new().patching(Patching::Lazy)).expect("a platform");
        let (space, mut context) = guest(&platform, &code());
        context.send_along(Arc::new(both()));
        let mut caller = Self { platform, space, context };
        caller.context.registers_mut().rbx = 0x202;
        for round in 0..3 {
            for _ in 0..6 {
                let call = next_call(&mut caller.context, &caller.space);
                assert!(round < 2 || call.entry == Entry::Patched, "call {} traps", call.nr);
            }
        }
        caller
    }

    /// Makes all three calls with these arguments and flags: what the first two brought along.
    fn brought(&mut self, args: [u64; 2], flags: u64) -> [Option<Vec<u8>>; 2] {
        self.context.pull_full_state().expect("the state");
        let regs = self.context.registers_mut();
        (regs.r12, regs.r13, regs.rbx) = (args[0], args[1], flags);
        let all: Vec<_> = [FIRST, SECOND, NEITHER].map(|nr| self.one(nr, args, flags)).into();
        assert_eq!(all[2], [None, None], "nobody asked for it");
        assert_eq!((&all[0][1], &all[1][0]), (&None, &None), "only the argument that was asked for");
        [all[0][0].clone(), all[1][1].clone()]
    }

    fn one(&mut self, nr: u32, args: [u64; 2], flags: u64) -> [Option<Vec<u8>>; 2] {
        let call = next_call(&mut self.context, &self.space);
        assert_eq!((call.nr, call.args[0], call.args[1]), (nr, args[0], args[1]));
        assert_eq!(call.entry, Entry::Patched);
        let sent = args.map(|addr| self.context.sent(GuestAddr::new(addr)).map(Vec::from));
        assert_eq!(self.context.sent(GuestAddr::new(args[0] ^ 8)), None, "not from there");
        self.context.set_return(i64::from(nr) * 7);
        let report = next_call(&mut self.context, &self.space);
        let kept = flags & FLAGS | 0x202;
        assert_eq!(report.args[..4], [u64::from(nr) * 7, kept, args[0], args[1]], "flags {flags:#x}");
        assert_eq!(self.context.sent(GuestAddr::new(args[0])), None, "it was another call's");
        sent
    }
}

fn both() -> SentArguments {
    SentArguments::default().first(FIRST).and_then(|sent| sent.second(SECOND)).expect("small numbers")
}

fn pattern() -> Vec<u8> {
    (0..PAGE_SIZE).map(|i| (i * 7 + i / 256) as u8).collect()
}

#[test]
fn the_bytes_at_an_argument_come_with_the_call() {
    let mut caller = Caller::new();
    caller.space.write(DATA, &pattern()).expect("memory");
    for offset in [0, 1, 8, 63, 200, 4096 - 57, 4096 - 56] {
        let [one, other] = [offset, (offset + 100) % 4000];
        let want = |at: u64| Some(pattern()[at as usize..at as usize + Context::SENT_LEN].to_vec());
        for flags in [0x202, 0x202 | 0x8d5, 0x202 | 1 << 10] {
            let brought = caller.brought([DATA.raw() + one, DATA.raw() + other], flags);
            assert_eq!(brought, [want(one), want(other)], "at {offset}");
        }
    }
}

#[test]
fn what_cannot_be_read_in_one_page_does_not_come_and_does_no_harm() {
    let mut caller = Caller::new();
    let hidden = GuestAddr::new(0x60_0000);
    caller.space.map_anonymous(hidden, PAGE_SIZE, Protection::NONE).expect("memory");
    let bad = [
        0,
        1,
        PAGE_SIZE - 1,
        HOLE - 55,
        HOLE - 1,
        HOLE,
        hidden.raw(),
        hidden.raw() + 4000,
        0x7fff_ffff_f000,
        0x8000_0000_0000,
        0xffff_8000_0000_0000,
        u64::MAX,
        u64::MAX - 55,
    ];
    for addr in bad {
        for flags in [0x202, 0x202 | FLAGS] {
            assert_eq!(caller.brought([addr, addr], flags), [None, None], "{addr:#x}");
        }
    }
    // With alignment checks the stub's look at an odd address is refused; an even one is none of theirs.
    let odd = DATA.raw() + 3;
    assert_eq!(caller.brought([odd, odd], 0x202 | 1 << 18), [None, None]);
    assert!(caller.brought(TWO, 0x202 | 1 << 18).iter().all(Option::is_some));
}

#[test]
fn calls_that_trap_are_answered_or_made_by_the_stub_bring_nothing() {
    let platform = Systrap::new(Options::new().patching(Patching::Off)).expect("a platform");
    let (space, mut context) = guest(&platform, &code());
    context.send_along(Arc::new(both()));
    context.registers_mut().rbx = 0x202;
    context.registers_mut().r12 = DATA.raw();
    for _ in 0..12 {
        assert_eq!(next_call(&mut context, &space).entry, Entry::Trapped);
        assert_eq!(context.sent(DATA), None);
    }

    let mut caller = Caller::new();
    assert!(caller.brought(TWO, 0x202)[0].is_some());
    caller.context.answer_in_stub(FIRST, Some(5)).expect("a small number");
    let report = next_call(&mut caller.context, &caller.space);
    assert_eq!((report.nr, report.args[0]), (REPORT, 5));
    // And back: what is not answered any more brings something again.
    caller.context.answer_in_stub(FIRST, None).expect("a small number");
    for _ in 0..4 {
        next_call(&mut caller.context, &caller.space);
    }
    assert!(caller.brought(TWO, 0x202)[0].is_some());
}

#[test]
fn a_futex_call_that_may_be_passed_on_brings_nothing_old() {
    let mut caller = Caller::new();
    let futex = libc::SYS_futex as u32;
    let calls = both().second(futex).expect("a small number");
    caller.context.send_along(Arc::new(calls));
    caller.context.pass_in_stub(PassedCalls::ALL);
    assert!(caller.brought(TWO, 0x202)[1].is_some());
    // The same address, still in the slot's line, and a call that the stub hands over without a look at it.
    let text = assemble(|a| {
        (|| {
            for _ in 0..64 {
                a.nop()?;
            }
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.mov(rdi, DATA.raw())?;
            a.mov(rsi, DATA.raw())?;
            a.mov(eax, futex)?;
            a.syscall()?;
            a.jmp(again)
        })()
        .expect("valid instructions");
    });
    let other = GuestAddr::new(0x80_0000);
    caller.space.map_anonymous(other, PAGE_SIZE, Protection::READ_WRITE).expect("memory");
    caller.space.write(other, &text).expect("memory");
    caller.space.protect(other, PAGE_SIZE, Protection::READ_EXECUTE).expect("memory");
    caller.context.pull_full_state().expect("the state");
    caller.context.registers_mut().rip = other.raw();
    let mut patched = 0;
    for _ in 0..5 {
        let call = next_call(&mut caller.context, &caller.space);
        assert_eq!(call.nr, futex);
        patched += u32::from(call.entry == Entry::Patched);
        assert_eq!(caller.context.sent(DATA), None);
    }
    assert!(patched > 0);
}

#[test]
fn a_thread_that_another_context_gets_brings_what_that_one_asked_for() {
    let mut caller = Caller::new();
    assert!(caller.brought(TWO, 0x202)[0].is_some());
    caller.context.release().expect("the stub thread is given back");
    let mut other = caller.context.duplicate().expect("a context");
    let call = next_call(&mut other, &caller.space);
    assert_eq!((call.nr, call.entry), (FIRST, Entry::Patched));
    assert_eq!(other.sent(DATA), None, "duplicates begin without");
    drop(other);
    assert!(caller.brought(TWO, 0x202)[0].is_some());
    assert!(SentArguments::default().first(512).is_err(), "beyond the stub's table");
    assert_eq!(CODE.raw(), 0x40_0000, "the code's place is the small guest's");
    drop(caller.platform);
}

#[test]
fn the_fourth_argument_is_where_calls_have_it() {
    const FOURTH: u32 = 305;
    let platform = Systrap::new(Options::new().patching(Patching::Lazy)).expect("a platform");
    let code = assemble(|a| {
        let mut again = a.create_label();
        (|| {
            for _ in 0..64 {
                a.nop()?;
            }
            a.set_label(&mut again)?;
            a.mov(rdi, DATA.raw())?;
            a.mov(rsi, DATA.raw() + 64)?;
            a.mov(rdx, DATA.raw() + 128)?;
            a.mov(r10, DATA.raw() + 192)?;
            a.mov(eax, FOURTH)?;
            a.syscall()?;
            a.jmp(again)
        })()
        .expect("valid instructions");
    });
    let (space, mut context) = guest(&platform, &code);
    space.write(DATA, &pattern()).expect("memory");
    context.send_along(Arc::new(SentArguments::default().fourth(FOURTH).expect("a small number")));
    let mut patched = 0;
    for _ in 0..8 {
        let call = next_call(&mut context, &space);
        assert_eq!((call.nr, call.args[3]), (FOURTH, DATA.raw() + 192));
        if call.entry == Entry::Patched {
            patched += 1;
            let sent = context.sent(GuestAddr::new(call.args[3])).expect("it comes with the call");
            assert_eq!(sent[..], pattern()[192..192 + Context::SENT_LEN]);
            assert!(call.args[..3].iter().all(|other| context.sent(GuestAddr::new(*other)).is_none()));
        }
    }
    assert!(patched > 0);
}
