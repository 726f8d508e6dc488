//! Changes of mappings by the stub thread of the guest that asked for them: the same effects, checks and limits as by
//! the leader, whichever way the call came, and nothing of it shows in the guest's registers.

#[path = "common/small_guest.rs"]
mod small_guest;

use iced_x86::code_asm::{eax, r8, r9, r10, rax, rdi, rdx, rsi};
use small_guest::{CODE, DATA, assemble, load, next_call, peek, poke, start};
use systrap::{
    AddressSpace, Advice, Context, CopyError, Entry, Event, Executed, GuestAddr, Made, MapError, Options,
    PAGE_SIZE, Patching, Protection, Systrap,
};

const AREA: GuestAddr = GuestAddr::new(0x1000_0000);
const LEN: u64 = 4 * PAGE_SIZE;
/// What the registers of [`calling_code`] hold at each call.
const ARGS: [u64; 4] = [0x1111_1111_1111, 0x2222_2222_2222, 0x3333_3333_3333, 0x4444_4444_4444];

/// A guest that makes call 1000 for ever: with [`ARGS`], then -1 if the call left the carry flag alone, then the result of
/// the call before.
fn calling_code() -> Vec<u8> {
    assemble(|a| {
        let mut again = a.create_label();
        (|| {
            let [first, second, third, fourth] = ARGS;
            a.mov(rdi, first)?;
            a.mov(rsi, second)?;
            a.mov(rdx, third)?;
            a.mov(r10, fourth)?;
            a.set_label(&mut again)?;
            a.stc()?;
            a.mov(eax, 1000)?;
            a.syscall()?;
            a.sbb(r8, r8)?;
            a.mov(r9, rax)?;
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
    /// A guest that waits with a call that came in the given way.
    fn new(entry: Entry) -> Self {
        let patching = if entry == Entry::Patched { Patching::Lazy } else { Patching::Off };
        let platform = Systrap::new(Options::new().patching(patching)).expect("a platform");
        let space = platform.new_address_space().expect("an address space");
        load(&space, &calling_code());
        let context = start(&platform);
        let mut caller = Self { platform, space, context };
        next_call(&mut caller.context, &caller.space);
        caller.context.set_return(7);
        assert_eq!(caller.next(), 7);
        let call = next_call(&mut caller.context, &caller.space);
        assert_eq!(call.entry, entry, "the way the calls come");
        caller
    }

    /// Goes on to the next call and gives the result of the one before as the guest has it.
    fn next(&mut self) -> i64 {
        let call = next_call(&mut self.context, &self.space);
        assert_eq!(call.nr, 1000);
        assert_eq!(call.args[..4], ARGS, "the guest's registers");
        assert_eq!(call.args[4], u64::MAX, "the guest's flags");
        call.args[5] as i64
    }
}

const WAYS: [Entry; 2] = [Entry::Trapped, Entry::Patched];

#[test]
fn changes_take_effect_while_the_guest_waits() {
    for entry in WAYS {
        let mut guest = Caller::new(entry);
        let mut memory = guest.context.memory(&guest.space);
        memory.map_anonymous(AREA, LEN, Protection::READ_WRITE).expect("free memory");
        poke(&guest.space, AREA, 5);
        let mut memory = guest.context.memory(&guest.space);
        memory.protect(AREA, PAGE_SIZE, Protection::READ).expect("a mapping");
        assert_eq!(guest.space.write(AREA, &[1]), Err(CopyError { copied: 0 }));
        assert_eq!(peek(&guest.space, AREA), 5);
        guest.context.memory(&guest.space).advise(AREA, LEN, Advice::DontNeed).expect("a mapping");
        assert_eq!(peek(&guest.space, AREA), 0, "the page is gone");
        guest.context.memory(&guest.space).unmap(AREA, LEN).expect("a range");
        assert_eq!(guest.space.read(AREA, &mut [0]), Err(CopyError { copied: 0 }));
        guest.context.set_return(8);
        assert_eq!(guest.next(), 8);
    }
}

#[test]
fn changes_between_events_leave_the_state_that_is_pulled_alone() {
    for entry in WAYS {
        let mut guest = Caller::new(entry);
        guest.context.memory(&guest.space).map_anonymous(AREA, LEN, Protection::READ).expect("free memory");
        guest.context.pull_full_state().expect("the state");
        let before = *guest.context.registers();
        guest.context.memory(&guest.space).unmap(AREA, LEN).expect("a range");
        guest.context.full_state_changed();
        guest.context.memory(&guest.space).map_anonymous(AREA, LEN, Protection::READ).expect("free memory");
        assert_eq!((before.rdi, before.rsi, before.rip), (ARGS[0], ARGS[1], guest.context.registers().rip));
        guest.context.set_return(9);
        assert_eq!(guest.next(), 9);
    }
}

#[test]
fn the_checks_are_those_of_the_address_space() {
    for entry in WAYS {
        let mut guest = Caller::new(entry);
        let end = guest.platform.max_user_address();
        let mut memory = guest.context.memory(&guest.space);
        for (addr, len) in
            [(end, PAGE_SIZE), (AREA, 0), (GuestAddr::new(AREA.raw() + 1), 1), (AREA, u64::MAX)]
        {
            let error = memory.unmap(addr, len).expect_err("no range of a guest");
            assert!(matches!(error, MapError::BadRange { .. }), "{error}");
        }
        let error = memory.protect(AREA, LEN, Protection::READ).expect_err("nothing is mapped there");
        assert_eq!(error.errno(), libc::ENOMEM, "{error}");
        guest.space.set_memory_limit(Some(LEN)).expect("a limit");
        let mut memory = guest.context.memory(&guest.space);
        let error = memory.map_anonymous(AREA, 64 << 20, Protection::READ).expect_err("more than the limit");
        assert_eq!(error.errno(), libc::ENOMEM, "{error}");
        guest.context.set_return(10);
        assert_eq!(guest.next(), 10);
    }
}

#[test]
fn a_context_elsewhere_changes_memory_all_the_same() {
    let mut guest = Caller::new(Entry::Trapped);
    let other = guest.platform.new_address_space().expect("an address space");
    guest.context.memory(&other).map_anonymous(AREA, LEN, Protection::READ_WRITE).expect("free memory");
    poke(&other, AREA, 5);
    assert_eq!(guest.space.read(AREA, &mut [0]), Err(CopyError { copied: 0 }));
    let mut fresh = guest.platform.new_context().expect("a context");
    fresh.memory(&guest.space).map_anonymous(AREA, LEN, Protection::READ_WRITE).expect("free memory");
    poke(&guest.space, AREA, 6);
    assert_eq!(
        fresh.memory(&guest.space).on_return().unmap(AREA, LEN).expect("a range"),
        Made::Now,
        "it has no call"
    );
    assert_eq!(guest.space.read(AREA, &mut [0]), Err(CopyError { copied: 0 }));
}

#[test]
fn a_change_can_be_the_result_of_the_guests_call() {
    for entry in WAYS {
        let mut guest = Caller::new(entry);
        let memory = guest.context.memory(&guest.space).on_return();
        let made = memory.map_anonymous(AREA, LEN, Protection::READ_WRITE).expect("a range");
        assert_eq!(made, Made::OnReturn);
        assert_eq!(guest.space.read(AREA, &mut [0]), Err(CopyError { copied: 0 }), "not yet");
        assert_eq!(guest.next(), AREA.raw() as i64);
        assert_eq!(guest.context.executed(), None);
        poke(&guest.space, AREA, 5);
        let memory = guest.context.memory(&guest.space).on_return();
        assert_eq!(memory.advise(AREA, LEN, Advice::DontNeed).expect("a range"), Made::OnReturn);
        assert_eq!(guest.next(), 0);
        assert_eq!(peek(&guest.space, AREA), 0);
        let memory = guest.context.memory(&guest.space).on_return();
        assert_eq!(memory.protect(AREA, LEN, Protection::NONE).expect("a range"), Made::OnReturn);
        assert_eq!(guest.next(), 0);
        assert_eq!(guest.space.read(AREA, &mut [0]), Err(CopyError { copied: 0 }));
        let memory = guest.context.memory(&guest.space).on_return();
        assert_eq!(memory.unmap(AREA, LEN).expect("a range"), Made::OnReturn);
        assert_eq!(guest.next(), 0);
        let error = guest.space.protect(AREA, LEN, Protection::READ).expect_err("it is gone");
        assert_eq!(error.errno(), libc::ENOMEM, "{error}");
    }
}

#[test]
fn a_failure_is_reported_before_the_guest_goes_on() {
    for entry in WAYS {
        for pull in [false, true] {
            let mut guest = Caller::new(entry);
            let memory = guest.context.memory(&guest.space).on_return();
            assert_eq!(memory.protect(AREA, LEN, Protection::NONE).expect("a range"), Made::OnReturn);
            assert_eq!(guest.context.switch(&guest.space).expect("a switch"), Event::Interrupted);
            assert_eq!(guest.context.executed(), Some(Executed::Failed { errno: libc::ENOMEM }));
            if pull {
                guest.context.pull_full_state().expect("the state");
                assert_eq!(guest.context.registers().rax as i64, -i64::from(libc::ENOMEM));
                let before = -i64::from(libc::ENOSYS);
                assert_eq!(
                    guest.context.registers().r9 as i64,
                    before,
                    "the state of this call, not of an earlier"
                );
                guest.context.full_state_changed();
            }
            assert_eq!(guest.next(), -i64::from(libc::ENOMEM));
            // The next failure's result is the supervisor's choice.
            let memory = guest.context.memory(&guest.space).on_return();
            assert_eq!(memory.protect(AREA, LEN, Protection::NONE).expect("a range"), Made::OnReturn);
            assert_eq!(guest.context.switch(&guest.space).expect("a switch"), Event::Interrupted);
            guest.context.set_return(11);
            assert_eq!(guest.next(), 11);
            assert_eq!(guest.context.executed(), None);
        }
    }
}

#[test]
fn a_pending_interrupt_is_reported_after_the_change() {
    for entry in WAYS {
        let mut guest = Caller::new(entry);
        let memory = guest.context.memory(&guest.space).on_return();
        memory.map_anonymous(AREA, LEN, Protection::READ_WRITE).expect("a range");
        guest.context.interrupter().interrupt();
        assert_eq!(guest.context.switch(&guest.space).expect("a switch"), Event::Interrupted);
        assert_eq!(guest.context.executed(), None, "it did not fail");
        poke(&guest.space, AREA, 5);
        assert_eq!(guest.next(), AREA.raw() as i64);
    }
}

#[test]
fn a_change_of_state_makes_the_change_first() {
    for entry in WAYS {
        let mut guest = Caller::new(entry);
        let memory = guest.context.memory(&guest.space).on_return();
        memory.map_anonymous(AREA, LEN, Protection::READ_WRITE).expect("a range");
        guest.context.pull_full_state().expect("the state");
        guest.context.full_state_changed();
        assert_eq!(guest.next(), AREA.raw() as i64);
        // And one that is there already makes it at once.
        guest.context.pull_full_state().expect("the state");
        guest.context.full_state_changed();
        let memory = guest.context.memory(&guest.space).on_return();
        assert_eq!(memory.unmap(AREA, LEN).expect("a range"), Made::Now);
        assert_eq!(guest.next(), 0);
    }
}

#[test]
fn a_context_that_moves_leaves_its_change_behind() {
    let mut guest = Caller::new(Entry::Trapped);
    let memory = guest.context.memory(&guest.space).on_return();
    memory.map_anonymous(AREA, LEN, Protection::READ_WRITE).expect("a range");
    let other = guest.space.fork().expect("a fork");
    let old = std::mem::replace(&mut guest.space, other);
    assert_eq!(guest.next(), AREA.raw() as i64);
    poke(&old, AREA, 5);
    assert_eq!(guest.space.read(AREA, &mut [0]), Err(CopyError { copied: 0 }));
}

#[test]
fn a_range_is_not_free_later_while_others_could_be_given_it() {
    let mut guest = Caller::new(Entry::Trapped);
    let mut sibling = start(&guest.platform);
    next_call(&mut sibling, &guest.space);
    let mut memory = guest.context.memory(&guest.space);
    memory.map_anonymous(AREA, LEN, Protection::READ_WRITE).expect("free memory");
    assert_eq!(memory.on_return().unmap(AREA, LEN).expect("a range"), Made::Now);
    assert_eq!(guest.space.read(AREA, &mut [0]), Err(CopyError { copied: 0 }));
    assert_eq!(guest.next(), 0);
    let memory = guest.context.memory(&guest.space).on_return();
    assert_eq!(memory.advise(DATA, PAGE_SIZE, Advice::WillNeed).expect("a range"), Made::OnReturn);
    assert_eq!(guest.next(), 0);
}

#[test]
fn code_that_is_taken_away_loses_its_patches_first() {
    for on_return in [false, true] {
        let mut guest = Caller::new(Entry::Patched);
        assert_eq!(guest.space.patched_sites(), 1);
        let len = PAGE_SIZE;
        let original = calling_code();
        if on_return {
            let memory = guest.context.memory(&guest.space).on_return();
            assert_eq!(memory.protect(CODE, len, Protection::READ).expect("a range"), Made::OnReturn);
        } else {
            guest.context.memory(&guest.space).protect(CODE, len, Protection::READ).expect("a range");
        }
        assert_eq!(guest.space.patched_sites(), 0);
        let mut now = vec![0; original.len()];
        guest.space.read(CODE, &mut now).expect("readable code");
        assert_eq!(now, original, "the bytes are the guest's again");
        match guest.context.switch(&guest.space).expect("a switch") {
            Event::Signal(signal) => assert_eq!(signal.signo, libc::SIGSEGV),
            other => panic!("the code cannot be executed any more, but: {other:?}"),
        }
        // Executable again, it is patched again.
        let memory = guest.context.memory(&guest.space).on_return();
        let made = memory.protect(CODE, len, Protection::READ_EXECUTE).expect("a range");
        assert_eq!(made, Made::Now, "what becomes executable is never left for later");
        next_call(&mut guest.context, &guest.space);
        next_call(&mut guest.context, &guest.space);
        assert_eq!(guest.space.patched_sites(), 1);
    }
}

#[test]
fn memory_that_was_mapped_later_is_patched_once_it_is_code() {
    let mut guest = Caller::new(Entry::Patched);
    let place = GuestAddr::new(0x60_0000);
    let memory = guest.context.memory(&guest.space).on_return();
    memory.map_anonymous(place, PAGE_SIZE, Protection::READ_WRITE).expect("a range");
    assert_eq!(guest.next(), place.raw() as i64);
    // Jumps are relative within the code: it runs wherever it lies.
    guest.space.write(place, &calling_code()).expect("writable memory");
    guest.context.memory(&guest.space).protect(place, PAGE_SIZE, Protection::READ_EXECUTE).expect("a range");
    guest.context.pull_full_state().expect("the state");
    guest.context.registers_mut().rip = place.raw();
    next_call(&mut guest.context, &guest.space);
    let call = next_call(&mut guest.context, &guest.space);
    assert!(call.ip > place && call.entry == Entry::Patched, "{call:?}");
}
