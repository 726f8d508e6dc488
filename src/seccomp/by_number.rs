//! A filter that finds a call by its number in a few steps.
//!
//! seccompiler compares the number with one after the other. When a filter is installed the kernel tries every number
//! there is, to note those that are always allowed: a list of 200 numbers then takes most of a millisecond. So seccompiler
//! compiles the conditions of each call, and a search tree of comparisons leads there.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch};

use super::bpf::{
    AUDIT_ARCH_X86_64, DATA_ARCH, JMP_JA, JMP_JEQ_K, LD_W_ABS, RET_ALLOW, RET_K, RET_TRAP, jump, statement,
};

const JMP_JGE_K: u16 = 0x35;
const DATA_NR: u32 = 0;
const RET_ERRNO: u32 = 0x0005_0000;

/// What becomes of a call.
#[derive(Debug)]
pub(crate) enum Ruling {
    /// It is made if one of the rules admits it; with no rules it is made. Else it raises SIGSYS.
    Admit(Vec<SeccompRule>),
    /// It fails.
    Fail(u16),
}

/// Compiles a filter; calls without a ruling, and those of another architecture, raise SIGSYS.
///
/// # Errors
///
/// Those of seccompiler.
pub(crate) fn assemble_by_number(rulings: BTreeMap<i64, Ruling>) -> Result<BpfProgram, seccompiler::Error> {
    let mut blocks = Vec::with_capacity(rulings.len());
    for (nr, ruling) in rulings {
        let block = match ruling {
            Ruling::Admit(rules) if rules.is_empty() => vec![statement(RET_K, RET_ALLOW)],
            Ruling::Admit(rules) => {
                let rules = BTreeMap::from([(nr, rules)]);
                let (mismatch, matched) = (SeccompAction::Trap, SeccompAction::Allow);
                BpfProgram::try_from(SeccompFilter::new(rules, mismatch, matched, TargetArch::x86_64)?)?
            }
            Ruling::Fail(errno) => vec![statement(RET_K, RET_ERRNO | u32::from(errno))],
        };
        blocks.push((nr as u32, block));
    }
    let mut program = vec![
        statement(LD_W_ABS, DATA_ARCH),
        jump(JMP_JEQ_K, AUDIT_ARCH_X86_64, 1, 0),
        statement(RET_K, RET_TRAP),
        statement(LD_W_ABS, DATA_NR),
    ];
    program.extend(tree(&blocks));
    Ok(program)
}

/// The code for these numbers, ascending; the number is loaded.
fn tree(blocks: &[(u32, BpfProgram)]) -> BpfProgram {
    match blocks {
        [] => vec![statement(RET_K, RET_TRAP)],
        [(nr, block)] => {
            // Conditional jumps reach 255 instructions only; a block may be longer.
            let mut code = vec![jump(JMP_JEQ_K, *nr, 1, 0), statement(RET_K, RET_TRAP)];
            code.extend(block.iter().cloned());
            code
        }
        _ => {
            let (below, from) = blocks.split_at(blocks.len() / 2);
            let middle = from.first().map_or(0, |(nr, _)| *nr);
            let below = tree(below);
            let mut code = vec![jump(JMP_JGE_K, middle, 0, 1), statement(JMP_JA, below.len() as u32)];
            code.extend(below);
            code.extend(tree(from));
            code
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, sock_filter};

    /// Runs a program as the kernel does (net/core/filter.c), as far as these filters go.
    fn verdict(program: &BpfProgram, nr: u32, arch: u32, args: [u64; 6]) -> u32 {
        const ALU_AND_K: u16 = 0x54;
        const JMP_JGT_K: u16 = 0x25;
        let mut data = [nr, arch, 0, 0].to_vec();
        data.extend(args.iter().flat_map(|arg| [*arg as u32, (arg >> 32) as u32]));
        let (mut at, mut acc) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let branch = |taken: bool| usize::from(if taken { jt } else { jf });
            match code {
                LD_W_ABS => acc = data[k as usize / 4],
                ALU_AND_K => acc &= k,
                JMP_JEQ_K => at += branch(acc == k),
                JMP_JGE_K => at += branch(acc >= k),
                JMP_JGT_K => at += branch(acc > k),
                JMP_JA => at += k as usize,
                RET_K => return k,
                _ => panic!("no filter of these has instruction {code:#x}"),
            }
        }
    }

    fn rules() -> BTreeMap<i64, Vec<SeccompRule>> {
        let is = |arg, value| {
            let condition =
                SeccompCondition::new(arg, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value).unwrap();
            SeccompRule::new(vec![condition]).unwrap()
        };
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = (0..300).step_by(3).map(|nr| (nr, vec![])).collect();
        rules.insert(4, vec![is(0, 7)]);
        // Longer than a conditional jump reaches.
        rules.insert(5, (0..100).map(|value| is(1, value)).collect());
        rules.insert(451, vec![is(2, 1), is(3, 1 << 40)]);
        rules
    }

    #[test]
    fn every_call_is_judged_as_by_a_plain_list() {
        let list = SeccompFilter::new(rules(), SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64);
        let list = BpfProgram::try_from(list.unwrap()).unwrap();
        let rulings = rules().into_iter().map(|(nr, rules)| (nr, Ruling::Admit(rules)));
        let tree = assemble_by_number(rulings.collect()).unwrap();
        let args = [[0; 6], [7; 6], [0, 99, 1, 0, 0, 0], [7 << 32, 100, 0, 1 << 40, 0, 0]];
        let numbers = (0..600).chain([0x4000_0000, 0x4000_0003, u32::MAX]);
        let (mut allowed, mut trapped) = (0, 0);
        for nr in numbers {
            for args in args {
                let seen = verdict(&tree, nr, AUDIT_ARCH_X86_64, args);
                assert_eq!(seen, verdict(&list, nr, AUDIT_ARCH_X86_64, args), "call {nr} with {args:?}");
                allowed += u32::from(seen == RET_ALLOW);
                trapped += u32::from(seen == RET_TRAP);
            }
        }
        assert!(allowed > 400 && trapped > 1000, "{allowed} allowed, {trapped} trapped");
    }

    #[test]
    fn other_architectures_trap_and_some_calls_fail() {
        let rulings = BTreeMap::from([(435, Ruling::Fail(38)), (39, Ruling::Admit(vec![]))]);
        let tree = assemble_by_number(rulings).unwrap();
        assert_eq!(verdict(&tree, 435, AUDIT_ARCH_X86_64, [0; 6]), RET_ERRNO | 38);
        assert_eq!(verdict(&tree, 39, AUDIT_ARCH_X86_64, [0; 6]), RET_ALLOW);
        assert_eq!(verdict(&tree, 39, 0x4000_0003, [0; 6]), RET_TRAP);
        assert_eq!(
            verdict(&assemble_by_number(BTreeMap::new()).unwrap(), 39, AUDIT_ARCH_X86_64, [0; 6]),
            RET_TRAP
        );
    }
}
