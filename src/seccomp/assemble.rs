//! From the table to a classic BPF program.

use std::collections::{BTreeMap, BTreeSet};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use systrap_stub::code::SyscallSite;

use super::bpf::{
    AUDIT_ARCH_X86_64, DATA_ARCH, JMP_JA, JMP_JEQ_K, LD_W_ABS, RET_ALLOW, RET_K, RET_TRAP, jump, statement,
};
use super::{Condition, FilterKind, Row, Test};

const DATA_IP_LOW: u32 = 8;
const DATA_IP_HIGH: u32 = 12;

fn jump_if_equal(k: u32, jt: u8, jf: u8) -> sock_filter {
    jump(JMP_JEQ_K, k, jt, jf)
}

/// Compiles one filter for a stub at `base`.
///
/// The base filter judges call, number and arguments of every row. The guest filter asks only whether a call comes from a
/// site of its own rows: all threads are under the base filter as well, the stricter answer of the two counts, and no site
/// has rows of both filters. Each new stub thread installs the guest filter, and what the kernel does with a program then
/// (checks, translation, machine code) takes its time in proportion to the length: 120 µs for all the rows.
///
/// The program looks at the instruction pointer first, so that a call from guest code costs three
/// instructions. The pointer is the address *after* the `syscall`; `int 0x80` and compatibility mode never
/// carry one of these addresses together with the 64-bit arch, which is checked next.
pub(crate) fn assemble(
    base: u64,
    rows: &[Row],
    filter: FilterKind,
) -> Result<BpfProgram, seccompiler::Error> {
    if filter == FilterKind::Guest {
        return Ok(assemble_sites(base, rows));
    }
    let mut blocks: BTreeMap<SyscallSite, BTreeMap<i64, Vec<SeccompRule>>> = BTreeMap::new();
    for row in rows {
        let rules = blocks.entry(row.site).or_default().entry(row.nr).or_default();
        if !row.conditions.is_empty() {
            let conditions = row.conditions.iter().map(compile_condition).collect::<Result<_, _>>()?;
            rules.push(SeccompRule::new(conditions)?);
        }
    }
    let mut compiled = Vec::new();
    for (site, rules) in blocks {
        let filter =
            SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?;
        let ip = base + site.ip_offset() as u64;
        compiled.push((ip as u32, BpfProgram::try_from(filter)?));
    }

    let mut program = stub_only(base);
    // Two instructions a block: "not this address: skip the jump", "jump to the block" (its offset has 32 bits).
    let mut before_block: u32 = 0;
    for (i, (ip_low, block)) in compiled.iter().enumerate() {
        let dispatcher_left = 2 * (compiled.len() - i - 1) as u32 + 1;
        program.push(jump_if_equal(*ip_low, 0, 1));
        program.push(statement(JMP_JA, dispatcher_left + before_block));
        before_block += block.len() as u32;
    }
    program.push(statement(RET_K, RET_TRAP));
    program.extend(compiled.into_iter().flat_map(|(_, block)| block));
    Ok(program)
}

/// The beginning of both filters: traps what comes from outside the stub, and loads the low half of the address.
fn stub_only(base: u64) -> BpfProgram {
    vec![
        statement(LD_W_ABS, DATA_IP_HIGH),
        jump_if_equal((base >> 32) as u32, 1, 0),
        statement(RET_K, RET_TRAP),
        statement(LD_W_ABS, DATA_ARCH),
        jump_if_equal(AUDIT_ARCH_X86_64, 1, 0),
        statement(RET_K, RET_TRAP),
        statement(LD_W_ABS, DATA_IP_LOW),
    ]
}

/// Allows what comes from a site of the guest filter's rows.
fn assemble_sites(base: u64, rows: &[Row]) -> BpfProgram {
    let guest = rows.iter().filter(|row| row.filter == FilterKind::Guest);
    let sites: BTreeSet<u32> = guest.map(|row| (base + row.site.ip_offset() as u64) as u32).collect();
    let mut program = stub_only(base);
    for ip_low in sites {
        program.push(jump_if_equal(ip_low, 0, 1));
        program.push(statement(RET_K, RET_ALLOW));
    }
    program.push(statement(RET_K, RET_TRAP));
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
