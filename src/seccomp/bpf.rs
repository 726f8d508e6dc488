//! Instructions of classic BPF, as far as the filters need them.

use seccompiler::sock_filter;

// linux/bpf_common.h, linux/seccomp.h and linux/audit.h
pub(super) const LD_W_ABS: u16 = 0x20;
pub(super) const JMP_JEQ_K: u16 = 0x15;
pub(super) const JMP_JA: u16 = 0x05;
pub(super) const RET_K: u16 = 0x06;
pub(super) const DATA_ARCH: u32 = 4;
pub(super) const RET_TRAP: u32 = 0x0003_0000;
pub(super) const RET_ALLOW: u32 = 0x7fff_0000;
pub(super) const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

pub(super) fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

pub(super) fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}
