//! Small copies by the guest's own stub thread, at once and with the result of a call: they reach as far as the guest
//! itself, and leave no trace in its registers.

#[path = "common/small_guest.rs"]
mod small_guest;

use iced_x86::code_asm::{eax, r8, r9, r10, r12, r13, rax, rdi, rdx, rsi};
use small_guest::{DATA, assemble, load, next_call, start};
use systrap::{
    AddressSpace, Context, Entry, Event, Executed, GuestAddr, Options, PAGE_SIZE, Patching, Protection,
    Systrap,
};

const WAYS: [Entry; 2] = [Entry::Trapped, Entry::Patched];
const ARGS: [u64; 2] = [0x1111_1111_1111, 0x2222_2222_2222];

struct Caller {
    space: AddressSpace,
    context: Context,
}

impl Caller {
    /// A guest that waits with a call: (constants, the results of the call before, -1 if carry and direction stayed set).
    fn new(entry: Entry) -> Self {
        let patching = if entry == Entry::Patched { Patching::Lazy } else { Patching::Off };
        let platform = Systrap::new(Options::new().patching(patching)).expect("a platform");
        let space = platform.new_address_space().expect("an address space");
        let code = assemble(|a| {
            let mut again = a.create_label();
            (|| {
                for _ in 0..64 {
                    a.nop()?;
                }
                a.mov(r12, ARGS[0])?;
                a.mov(r13, ARGS[1])?;
                a.set_label(&mut again)?;
                a.mov(rdi, r12)?;
                a.mov(rsi, r13)?;
                a.std()?;
                a.stc()?;
                a.mov(eax, 1000)?;
                a.syscall()?;
                a.mov(rdx, rax)?;
                a.sbb(r8, r8)?;
                a.mov(r10, rdi)?;
                a.pushfq()?;
                a.pop(r9)?;
                a.jmp(again)
            })()
            .expect("valid instructions");
        });
        load(&space, &code);
        let mut context = start(&platform);
        next_call(&mut context, &space);
        next_call(&mut context, &space);
        assert_eq!(next_call(&mut context, &space).entry, entry);
        Self { space, context }
    }

    fn next(&mut self) -> i64 {
        let call = next_call(&mut self.context, &self.space);
        let [first, second, result, again, carry, flags] = call.args;
        assert_eq!(([first, second], again, carry), (ARGS, ARGS[0], u64::MAX), "registers and carry flag");
        assert_eq!(flags & 0x400, 0x400, "the direction flag");
        result as i64
    }

    fn bytes(&self, at: GuestAddr, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.space.read(at, &mut bytes).expect("readable");
        bytes
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + 1) as u8).collect()
}

#[test]
fn bytes_travel_with_the_result() {
    for entry in WAYS {
        let mut guest = Caller::new(entry);
        for len in [0, 1, 7, 8, 64, 144, 255, 256] {
            let bytes = pattern(len);
            let at = GuestAddr::new(DATA.raw() + 3);
            guest.space.write(at, &[0; 300]).expect("writable");
            assert!(guest.context.set_return_with(len as i64, at, &bytes));
            assert_eq!(guest.next(), len as i64);
            assert_eq!(guest.bytes(at, len), bytes);
            assert!(guest.bytes(GuestAddr::new(at.raw() + len as u64), 8).iter().all(|byte| *byte == 0));
        }
        assert!(!guest.context.set_return_with(0, DATA, &[0; 257]), "not small");
        assert!(!guest.context.set_return_with(0, GuestAddr::new(u64::MAX - 3), &[0; 8]), "no guest address");
        assert!(guest.context.set_return_with(1, DATA, &[9]));
        guest.context.set_return(2);
        assert_eq!(guest.next(), 2, "the later result counts");
        assert_eq!(guest.bytes(DATA, 1), [9]);
    }
}

#[test]
fn a_copy_that_faults_is_reported_before_the_guest_goes_on() {
    for entry in WAYS {
        let mut guest = Caller::new(entry);
        let hole = GuestAddr::new(DATA.raw() + PAGE_SIZE - 5);
        for (at, copied) in [(hole, 5), (GuestAddr::new(0x1000), 0)] {
            assert!(guest.context.set_return_with(1, at, &pattern(64)));
            assert_eq!(guest.context.switch(&guest.space).expect("a switch"), Event::Interrupted);
            assert_eq!(guest.context.executed(), Some(Executed::CopyFailed { copied }));
            assert_eq!(guest.next(), -i64::from(libc::EFAULT));
            assert_eq!(guest.context.executed(), None);
        }
        assert_eq!(guest.bytes(hole, 5), pattern(5));
        guest.space.protect(DATA, PAGE_SIZE, Protection::READ).expect("a mapping");
        assert!(guest.context.set_return_with(1, DATA, &[1]));
        assert_eq!(guest.context.switch(&guest.space).expect("a switch"), Event::Interrupted);
        guest.context.set_return(3);
        assert_eq!(guest.next(), 3);
    }
}

#[test]
fn bytes_are_written_whatever_comes_before_the_guest_goes_on() {
    for entry in WAYS {
        let mut guest = Caller::new(entry);
        assert!(guest.context.set_return_with(1, DATA, &[5]));
        guest.context.interrupter().interrupt();
        assert_eq!(guest.context.switch(&guest.space).expect("a switch"), Event::Interrupted);
        assert_eq!(guest.bytes(DATA, 1), [5]);
        assert_eq!(guest.next(), 1);
        assert!(guest.context.set_return_with(2, DATA, &[6]));
        guest.context.pull_full_state().expect("the state");
        guest.context.full_state_changed();
        assert_eq!(guest.next(), 2);
        assert_eq!(guest.bytes(DATA, 1), [6]);
    }
}
