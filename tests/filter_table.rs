//! What a stub process may ask of the host kernel, and the machine code that asks, as text: any change of
//! either shows in review.
#![allow(unsafe_code)]

use std::fmt::Write as _;

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, Mnemonic, NasmFormatter, OpKind};
use systrap::seccomp::{FilterKind, rows};
use systrap_stub::code::{ENTRIES, SyscallSite, entries_lie_in_text, offset_of_entry, text};

/// A base at which the snapshot shows which addresses are the stub's.
const BASE: u64 = 0x7fab_0000_0000;

fn stub_text() -> &'static [u8] {
    assert!(entries_lie_in_text());
    let (start, len) = text();
    // SAFETY: the linker's bounds of a section of initialised, never-written bytes.
    unsafe { std::slice::from_raw_parts(start, len) }
}

#[test]
fn the_list_of_host_calls() {
    let mut table = String::new();
    for row in rows(BASE) {
        writeln!(table, "{row}").expect("writing to a string");
    }
    insta::assert_snapshot!("host_calls", table);
}

#[test]
fn every_row_says_why_and_moves_with_the_base() {
    let (here, there) = (rows(BASE), rows(BASE + 0x10_0000_0000));
    assert_eq!(here.len(), there.len());
    let mut differing = 0;
    for (a, b) in here.iter().zip(&there) {
        assert!(!a.why.is_empty(), "{a}");
        assert_eq!((a.site, a.nr, a.filter), (b.site, b.nr, b.filter));
        differing += usize::from(a.conditions != b.conditions);
    }
    assert!(differing > 0, "no row depends on where the stub lies");
}

#[test]
fn every_site_has_a_row_or_stands_before_the_filter() {
    let rows = rows(BASE);
    for site in SyscallSite::ALL {
        let before = [SyscallSite::TemplateUnmap, SyscallSite::TemplateSeccomp].contains(site);
        let count = rows.iter().filter(|row| row.site == *site).count();
        assert_eq!(count == 0, before, "{site:?} has {count} rows");
    }
}

#[test]
fn no_site_has_rows_of_both_filters() {
    // The guest filter asks for the site alone; what a row of the other filter admits there would be admitted as well.
    let rows = rows(BASE);
    for site in SyscallSite::ALL {
        let of_site = || rows.iter().filter(|row| row.site == *site);
        let guest = of_site().filter(|row| row.filter == FilterKind::Guest).count();
        assert!(guest == 0 || guest == of_site().count(), "{site:?}");
    }
}

#[test]
fn a_guest_thread_can_neither_name_a_descriptor_nor_change_signals_or_processes() {
    let only = [
        libc::SYS_futex,
        libc::SYS_restart_syscall,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
        libc::SYS_rt_sigprocmask,
        libc::SYS_membarrier,
        libc::SYS_sched_yield,
        libc::SYS_exit_group,
    ];
    for row in rows(BASE).iter().filter(|row| row.filter == FilterKind::Guest) {
        assert!(only.contains(&row.nr), "{row}");
    }
}

/// All code by linear decoding from each entry, in the order of [`ENTRIES`], whichever one the linker chose; the addresses
/// of the section, not of the program.
fn disassembly() -> (String, Vec<u64>) {
    let code = stub_text();
    let mut starts: Vec<_> = ENTRIES.iter().map(|(name, entry)| (offset_of_entry(*entry), *name)).collect();
    starts.sort_unstable();
    let mut parts = Vec::new();
    let mut syscalls = Vec::new();
    let mut formatter = NasmFormatter::new();
    formatter.options_mut().set_branch_leading_zeros(false);
    for (i, (start, name)) in starts.iter().enumerate() {
        let end = starts.get(i + 1).map_or(code.len(), |next| next.0);
        let mut out = format!("{name}:\n");
        let mut decoder = Decoder::with_ip(64, &code[*start..end], *start as u64, DecoderOptions::NONE);
        let mut padding = false;
        while decoder.can_decode() {
            let instruction: Instruction = decoder.decode();
            if instruction.mnemonic() == Mnemonic::Syscall {
                syscalls.push(instruction.next_ip());
            }
            padding |= instruction.mnemonic() == Mnemonic::INVALID;
            let mut line = String::new();
            formatter.format(&instruction, &mut line);
            // Addresses in the text change with every edit before them: show what a branch means by its
            // distance, and leave the linker's padding between functions out.
            if instruction.mnemonic() == Mnemonic::Int3 || padding {
                continue;
            }
            // A target of 0 is the function that the linker put first.
            if instruction.op0_kind() == OpKind::NearBranch64 {
                let far = instruction.near_branch_target().wrapping_sub(instruction.ip()) as i64;
                let inside = (*start as u64..end as u64).contains(&instruction.near_branch_target());
                let name = format!("{:?}", instruction.mnemonic()).to_lowercase();
                line = if inside {
                    format!("{name} {far:+}")
                } else {
                    format!("{name} {}", function_of(&starts, instruction.near_branch_target()))
                };
            } else if instruction.is_ip_rel_memory_operand() {
                line = line.split('[').next().unwrap_or_default().to_owned() + "[rip …]";
            }
            writeln!(out, "    {line}").expect("writing to a string");
        }
        parts.push((ENTRIES.iter().position(|(other, _)| other == name), out));
    }
    parts.sort();
    (parts.into_iter().map(|(_, part)| part).collect(), syscalls)
}

fn function_of(starts: &[(usize, &str)], target: u64) -> String {
    let owner = starts.iter().rev().find(|(start, _)| *start as u64 <= target);
    owner.map_or_else(String::new, |(start, name)| format!("{name}+{}", target - *start as u64))
}

#[test]
fn the_stubs_machine_code() {
    insta::assert_snapshot!("stub_code", disassembly().0);
}

#[test]
fn every_syscall_instruction_of_the_stub_is_a_named_site() {
    let (_, mut found) = disassembly();
    let mut named: Vec<_> = SyscallSite::ALL.iter().map(|site| site.ip_offset() as u64).collect();
    found.sort_unstable();
    named.sort_unstable();
    assert_eq!(found, named);
}

#[test]
fn the_stub_enters_the_kernel_by_syscall_only() {
    let code = stub_text();
    for (bytes, name) in [([0xcd, 0x80], "int 0x80"), ([0x0f, 0x34], "sysenter")] {
        assert!(!code.windows(2).any(|pair| pair == bytes), "the bytes of {name} occur in the stub");
    }
}
