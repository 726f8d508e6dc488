//! From the table to a classic BPF program.

use std::collections::{BTreeMap, BTreeSet};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use systrap_stub::code::SyscallSite;

use super::{Condition, FilterKind, Row, Test};

// linux/bpf_common.h and linux/seccomp.h
const LD_W_ABS: u16 = 0x20;
const JMP_JEQ_K: u16 = 0x15;
const JMP_JA: u16 = 0x05;
const RET_K: u16 = 0x06;
const DATA_ARCH: u32 = 4;
const DATA_IP_LOW: u32 = 8;
const DATA_IP_HIGH: u32 = 12;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ALLOW: u32 = 0x7fff_0000;
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

fn jump_if_equal(k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: JMP_JEQ_K, jt, jf, k }
}

/// Compiles one filter for a stub at `base`.
///
/// The program looks at the instruction pointer first, so that a call from guest code costs three
/// instructions. The pointer is the address *after* the `syscall`; `int 0x80` and compatibility mode never
/// carry one of these addresses together with the 64-bit arch, which is checked next.
///
/// The base filter stays in force under the guest filter, and the stricter answer counts. So the guest filter only has
/// to take away the sites that are not for stub threads; what may come from the others is checked once, by the base
/// filter. Each stub thread installs it: the shorter it is, the sooner a process starts (20 against 900 instructions
/// were 130 µs).
pub(crate) fn assemble(
    base: u64,
    rows: &[Row],
    filter: FilterKind,
) -> Result<BpfProgram, seccompiler::Error> {
    let blocks = match filter {
        FilterKind::Base => compile_conditions(rows)?,
        FilterKind::Guest => sites_of_stub_threads(rows)
            .into_iter()
            .map(|site| (site, vec![statement(RET_K, RET_ALLOW)]))
            .collect(),
    };
    Ok(dispatch(base, &blocks))
}

type Blocks = Vec<(SyscallSite, BpfProgram)>;

/// What each site may do, by number and arguments.
fn compile_conditions(rows: &[Row]) -> Result<Blocks, seccompiler::Error> {
    let mut by_site: BTreeMap<SyscallSite, BTreeMap<i64, Vec<SeccompRule>>> = BTreeMap::new();
    for row in rows {
        let rules = by_site.entry(row.site).or_default().entry(row.nr).or_default();
        if !row.conditions.is_empty() {
            let conditions = row.conditions.iter().map(compile_condition).collect::<Result<_, _>>()?;
            rules.push(SeccompRule::new(conditions)?);
        }
    }
    let compile = |(site, rules)| {
        let filter =
            SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?;
        Ok((site, BpfProgram::try_from(filter)?))
    };
    by_site.into_iter().map(compile).collect()
}

/// The sites all of whose rows are for stub threads.
fn sites_of_stub_threads(rows: &[Row]) -> BTreeSet<SyscallSite> {
    let of = |kind| rows.iter().filter(move |row| row.filter == kind).map(|row| row.site);
    let others: BTreeSet<SyscallSite> = of(FilterKind::Base).collect();
    of(FilterKind::Guest).filter(|site| !others.contains(site)).collect()
}

/// The program that leads from each site to its block.
fn dispatch(base: u64, blocks: &Blocks) -> BpfProgram {
    let mut program = vec![
        statement(LD_W_ABS, DATA_IP_HIGH),
        jump_if_equal((base >> 32) as u32, 1, 0),
        statement(RET_K, RET_TRAP),
        statement(LD_W_ABS, DATA_ARCH),
        jump_if_equal(AUDIT_ARCH_X86_64, 1, 0),
        statement(RET_K, RET_TRAP),
        statement(LD_W_ABS, DATA_IP_LOW),
    ];
    // Two instructions a block: "not this address: skip the jump", "jump to the block" (its offset has 32 bits).
    let mut before_block: u32 = 0;
    for (i, (site, block)) in blocks.iter().enumerate() {
        let dispatcher_left = 2 * (blocks.len() - i - 1) as u32 + 1;
        let ip = base + site.ip_offset() as u64;
        program.push(jump_if_equal(ip as u32, 0, 1));
        program.push(statement(JMP_JA, dispatcher_left + before_block));
        before_block += block.len() as u32;
    }
    program.push(statement(RET_K, RET_TRAP));
    program.extend(blocks.iter().flat_map(|(_, block)| block.iter().cloned()));
    program
}

pub(super) fn compile_condition(condition: &Condition) -> Result<SeccompCondition, seccompiler::Error> {
    let (len, op, value) = match condition.test {
        Test::Eq(value) => (SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value),
        Test::Eq32(value) => (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(value)),
        Test::Lt(value) => (SeccompCmpArgLen::Qword, SeccompCmpOp::Lt, value),
        Test::Ge(value) => (SeccompCmpArgLen::Qword, SeccompCmpOp::Ge, value),
        Test::Le(value) => (SeccompCmpArgLen::Qword, SeccompCmpOp::Le, value),
        Test::OnlyBits(mask) => (SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(!mask), 0),
    };
    Ok(SeccompCondition::new(condition.arg, len, op, value)?)
}
