//! Trampolines at the far ends of what 32-bit displacements bridge.

use iced_x86::{Decoder, DecoderOptions};
use usertrap::*;

const SYSHANDLER: SyshandlerAddr = SyshandlerAddr::new(0x7fff_ffff_f000);

/// mov eax, 1; lea rdi, [rip + to]; je +2; syscall
fn planned(site: GuestAddr, to: i32) -> (Vec<u8>, Result<Plan, Refusal>) {
    let mut code = vec![0xb8, 1, 0, 0, 0, 0x48, 0x8d, 0x3d];
    code.extend(to.to_le_bytes());
    code.extend([0x74, 0x02, 0x0f, 0x05, 0xc3]);
    let start = site.wrapping_offset(-14);
    let targets = [start.wrapping_offset(6)]; // keeps the lea from being the one that is replaced
    let function = Some(KnownFunction { start, end: None });
    let window = CodeWindow::new(start, &code, site).unwrap();
    let result = plan(&window, &Hints { function, targets: &targets, ..Hints::default() });
    (code, result)
}

#[test]
fn displacements_fit_at_both_ends() {
    let site = GuestAddr::new(0x5555_5555_000e);
    for to in [0, 1 << 20, i32::MAX - 0x2000, i32::MIN + 0x2000] {
        let (_, plan) = planned(site, to);
        let plan = plan.unwrap();
        assert_eq!(plan.relocated().len(), 3);
        let reach = plan.reach(site).unwrap();
        let len = Trampoline::max_len(&plan) as u64;
        let align = TRAMPOLINE_ALIGN as u64;
        let lowest = reach.lowest.raw().next_multiple_of(align);
        let highest = (reach.highest.raw() + 1 - len) / align * align;
        for at in [lowest, (lowest + highest) / 2 / align * align, highest].map(TrampolineAddr::new) {
            let trampoline = Trampoline::build(&plan, site, at, SYSHANDLER).unwrap();
            let mut decoder = Decoder::with_ip(64, trampoline.code(), at.raw(), DecoderOptions::NONE);
            let [_, lea, je, rcx, jmp] = [(); 5].map(|()| decoder.decode());
            let expected = site.wrapping_offset(-2 + i64::from(to)).raw();
            assert_eq!(lea.ip_rel_memory_address(), expected);
            assert_eq!(je.near_branch64(), site.raw() + 2);
            assert_eq!(rcx.ip_rel_memory_address(), site.raw() + 2);
            assert!(jmp.is_jmp_near_indirect());
        }
        for at in [lowest - align, highest + align, lowest + 8].map(TrampolineAddr::new) {
            let refused = Trampoline::build(&plan, site, at, SYSHANDLER);
            assert_eq!(refused, Err(BuildError::Misplaced { site, at }));
        }
    }
}

#[test]
fn an_operand_that_wraps_around_is_out_of_reach() {
    let site = GuestAddr::new(0x10_000e);
    let (_, plan) = planned(site, i32::MIN + 0x2000);
    assert_eq!(plan.unwrap().reach(site), None);
}
