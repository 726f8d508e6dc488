//! Frames written and read back, and frames that a guest damaged.

use super::*;
use crate::sentry::guest_memory::fake::FakeMemory;

const BASE: u64 = 0x10_0000;
const LEN: usize = 0x1_0000;

fn registers() -> Registers {
    Registers {
        rip: 0x40_1000,
        rsp: BASE + 0x9003,
        rax: 7,
        r8: 8,
        rflags: 0x246 | FLAG_DF,
        fs_base: 5,
        ..Registers::default()
    }
}

fn xstate() -> Vec<u8> {
    let mut xstate: Vec<u8> = (0..2696).map(|index| index as u8).collect();
    xstate[MXCSR..MXCSR + 4].copy_from_slice(&0x1f80_u32.to_le_bytes());
    xstate[FXSAVE_LEN..XSAVE_HEADER_END].fill(0);
    xstate[FXSAVE_LEN] = 0xe7;
    xstate
}

fn action(flags: i32) -> KernelSigaction {
    KernelSigaction { handler: 0x50_0000, flags: flags as u64 | SA_RESTORER, restorer: 0x60_0000, mask: 0 }
}

fn push_with(
    memory: &FakeMemory,
    registers: &mut Registers,
    flags: i32,
    stack: AltStack,
) -> Result<(), BadFrame> {
    let info = SigInfo::from_user(libc::SIGUSR1, 0, 42, 1000);
    let context = FrameContext {
        info: &info,
        action: &action(flags),
        mask: SignalSet(0x1234),
        stack,
        fault: FaultState { trapno: 14, error_code: 6, cr2: 0xdead },
        xfeatures: 0xe7,
    };
    push(memory, registers, &xstate(), &context)
}

#[test]
fn a_frame_restores_what_it_saved() {
    let memory = FakeMemory::new(BASE, LEN);
    let mut now = registers();
    push_with(&memory, &mut now, libc::SA_SIGINFO, AltStack::DISABLED).unwrap();
    assert_eq!((now.rip, now.rdi, now.rax), (0x50_0000, libc::SIGUSR1 as u64, 0));
    assert_eq!(now.rsp % 16, 8, "as after a call");
    assert!(now.rsp < registers().rsp - RED_ZONE);
    assert_eq!(now.rflags, 0x246);
    let frame: RtSigframe = memory.read_object(GuestAddr::new(now.rsp)).unwrap();
    assert_eq!((frame.return_address, frame.uc_flags, frame.context.cr2), (0x60_0000, 7, 0xdead));
    assert_eq!(frame.context.fpstate % 64, 0);
    assert_eq!(now.rsi, now.rsp + 8 + 304);
    assert_eq!(frame.info[..4], libc::SIGUSR1.to_le_bytes());

    // The handler changes everything and returns.
    now = Registers { rsp: now.rsp + 8, rflags: 0x202, fs_base: 9, ..Registers::default() };
    let mut restored_xstate = vec![0xff; 2696];
    let restored = pop(&memory, &mut now, &mut restored_xstate, 0xe7).unwrap();
    assert_eq!(restored, Restored { mask: SignalSet(0x1234), stack: AltStack::DISABLED });
    assert_eq!(now, Registers { fs_base: 9, ..registers() });
    let mut expected = xstate();
    expected[SW_BYTES..SW_BYTES + SW_BYTES_LEN].fill(0);
    restored_xstate[SW_BYTES..SW_BYTES + SW_BYTES_LEN].fill(0);
    assert!(restored_xstate == expected);
}

#[test]
fn the_alternate_stack_is_used_once_and_must_be_large_enough() {
    let memory = FakeMemory::new(BASE, LEN);
    let stack = AltStack { sp: BASE + 0x2000, size: 0x2000, flags: 0 };
    let mut now = registers();
    push_with(&memory, &mut now, libc::SA_ONSTACK, stack).unwrap();
    assert!(stack.contains(now.rsp));
    let first = now.rsp;
    push_with(&memory, &mut now, libc::SA_ONSTACK, stack).unwrap();
    assert!(stack.contains(now.rsp) && now.rsp < first - RED_ZONE, "nested on the same stack");
    assert_eq!(push_with(&memory, &mut now, libc::SA_ONSTACK, stack), Err(BadFrame), "full");
    let small = AltStack { size: 2048, ..stack };
    assert_eq!(push_with(&memory, &mut registers(), libc::SA_ONSTACK, small), Err(BadFrame));
    let mut without = registers();
    push_with(&memory, &mut without, 0, stack).unwrap();
    assert!(!stack.contains(without.rsp));
}

#[test]
fn bad_stacks_and_missing_restorers_are_refused() {
    let memory = FakeMemory::new(BASE, LEN);
    for rsp in [0, 8, BASE + 100, BASE + LEN as u64 + 0x10_0000, u64::MAX] {
        let mut now = Registers { rsp, ..registers() };
        assert_eq!(push_with(&memory, &mut now, 0, AltStack::DISABLED), Err(BadFrame));
        if rsp != BASE + 100 {
            assert_eq!(pop(&memory, &mut now, &mut vec![0; 2696], 0xe7), Err(BadFrame));
        }
    }
    let info = SigInfo::from_kernel(libc::SIGINT);
    let context = FrameContext {
        info: &info,
        action: &KernelSigaction::default(),
        mask: SignalSet::default(),
        stack: AltStack::DISABLED,
        fault: FaultState::default(),
        xfeatures: 3,
    };
    assert_eq!(push(&memory, &mut registers(), &xstate(), &context), Err(BadFrame));
}

#[test]
fn a_damaged_extended_state_is_made_harmless() {
    let memory = FakeMemory::new(BASE, LEN);
    let mut pushed = registers();
    push_with(&memory, &mut pushed, 0, AltStack::DISABLED).unwrap();
    let frame: RtSigframe = memory.read_object(GuestAddr::new(pushed.rsp)).unwrap();
    let fpstate = GuestAddr::new(frame.context.fpstate);
    let returned = Registers { rsp: pushed.rsp + 8, ..Registers::default() };
    let header = |xstate: &[u8]| u64::from_le_bytes(xstate[FXSAVE_LEN..][..8].try_into().unwrap());

    // Reserved header bits, unknown features and reserved MXCSR bits.
    memory.write(fpstate.checked_add(512).unwrap(), &[0xff; 64]).unwrap();
    memory.write(fpstate.checked_add(24).unwrap(), &[0xff; 4]).unwrap();
    let mut restored = vec![0; 2696];
    pop(&memory, &mut returned.clone(), &mut restored, 0xe7).unwrap();
    assert_eq!(header(&restored), 0xe7);
    assert!(restored[520..576].iter().all(|byte| *byte == 0));
    assert_eq!(restored[24..28], [0xff, 0xff, 0, 0]);

    // A wrong magic number: only the legacy part counts.
    memory.write(fpstate.checked_add(SW_BYTES as u64).unwrap(), &[0; 4]).unwrap();
    pop(&memory, &mut returned.clone(), &mut restored, 0xe7).unwrap();
    assert_eq!(header(&restored), 3);

    // No state at all: the initial one.
    memory.write(GuestAddr::new(pushed.rsp + 8 + 40 + 184), &[0; 8]).unwrap();
    pop(&memory, &mut returned.clone(), &mut restored, 0xe7).unwrap();
    assert_eq!((header(&restored), &restored[..2]), (0, &[0x7f, 0x03][..]));
}
