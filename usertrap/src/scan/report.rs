//! A site's patch as text: for people, and for snapshots that a review can read.

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};

use super::{GvisorRule, Scan, ScannedSite};
use crate::addr::{GuestAddr, SyshandlerAddr, TrampolineAddr};
use crate::arena::TrampolineMemory;
use crate::patch_map::{Limits, PatchMap};
use crate::plan::{JUMP_LEN, Plan, Tier};
use crate::trampoline::{GuestPosition, Trampoline};
use crate::window::{CodeWindow, SYSCALL};
use crate::write::{Step, WriteMode};

/// Instructions shown in front of a site that has no plan.
const CONTEXT_BYTES: i32 = 16;

impl Scan<'_> {
    /// Everything about one site: bytes and disassembly before, the plan and its reason, the trampoline as it would be
    /// at `at`, the guest's bytes after.
    #[must_use]
    pub fn describe(&self, site: &ScannedSite, at: TrampolineAddr, syshandler: SyshandlerAddr) -> String {
        let mut text = String::new();
        let out = &mut text;
        let name = site.function.as_deref().unwrap_or("?");
        let gvisor = match site.gvisor {
            GvisorRule::NoMatch => "no",
            GvisorRule::Patches => "yes",
            GvisorRule::FalseMatch => "FALSELY",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{} <{name}>", site.site);
        let Some((window, chain)) = self.line(site, 96) else { return text };
        match &site.result {
            Err(refusal) => {
                let _ = writeln!(out, "  plan: tier 4, {refusal}; gvisor: {gvisor}");
                let near = chain.into_iter().filter(|o| *o >= -CONTEXT_BYTES);
                listing(out, "before", &window, near.chain([0, SYSCALL.len() as i32]));
            }
            Ok(plan) => {
                let late = plan.late_entry().map(|o| format!("; entered behind the jump at {o:+}"));
                let (tier, late) = (plan.tier(), late.unwrap_or_default());
                let _ = writeln!(out, "  plan: {tier}; {:?}{late}; gvisor: {gvisor}", plan.witness());
                describe_plan(out, plan, &window, at, syshandler);
            }
        }
        text
    }
}

fn describe_plan(
    out: &mut String,
    plan: &Plan,
    window: &CodeWindow<'_>,
    at: TrampolineAddr,
    to: SyshandlerAddr,
) {
    let line: Vec<i32> = plan.relocated().iter().map(|r| r.offset).collect();
    let behind = [0, SYSCALL.len() as i32];
    listing(out, "before", window, line.iter().copied().chain(behind));
    if let Tier::Padding { offset, .. } = plan.tier() {
        listing(out, "padding", window, padding_line(window, *offset));
    }
    let mut map = PatchMap::new(Limits::default());
    let built = map.prepare(plan, window, to, WriteMode::Stopped, &mut Here(at));
    let installation = match built {
        Ok(installation) => installation,
        Err(error) => {
            let _ = writeln!(out, "  no trampoline at {at}: {error}");
            return;
        }
    };
    describe_trampoline(out, &installation.trampoline);
    let first = window.first();
    let mut bytes = window.from(first).to_vec();
    for step in &installation.steps {
        if let Step::Bytes { addr, new, .. } = step {
            let from = window.addr(first).distance_to(*addr) as usize;
            bytes[from..from + new.len()].copy_from_slice(new);
        }
    }
    let Ok(after) = CodeWindow::new(window.addr(first), &bytes, window.site()) else { return };
    let jump_end = plan.head() + JUMP_LEN as i32;
    let kept = |o: &i32| *o == plan.head() || matches!(plan.tier(), Tier::Padding { .. }) || *o >= jump_end;
    listing(out, "after", &after, line.iter().copied().chain(behind).filter(kept));
    if let Tier::Padding { offset, .. } = plan.tier() {
        listing(out, "padding after", &after, [*offset].into_iter());
    }
    let mode = match plan.write_mode(window.site()) {
        WriteMode::Stopped => "threads stopped",
        WriteMode::Atomic => "one atomic store",
        WriteMode::Breakpoint => "int3 first",
    };
    let _ = writeln!(out, "  written: {mode}");
}

fn padding_line(window: &CodeWindow<'_>, from: i32) -> impl Iterator<Item = i32> {
    let mut here = from;
    std::iter::from_fn(move || {
        let this = here;
        let next = crate::decode::decode_at(window, here).map(|d| d.end());
        here = next.unwrap_or(i32::MAX);
        (this < from + JUMP_LEN as i32).then_some(this)
    })
}

/// One line for each of the instructions at the offsets.
fn listing(out: &mut String, title: &str, window: &CodeWindow<'_>, offsets: impl Iterator<Item = i32>) {
    let _ = writeln!(out, "  {title}:");
    let mut offsets: Vec<i32> = offsets.collect();
    offsets.dedup();
    for (i, offset) in offsets.iter().enumerate() {
        let len = instruction(out, window.addr(*offset), window.from(*offset), "");
        let end = offset + len as i32;
        if let Some(next) = offsets.get(i + 1).filter(|n| **n > end) {
            let dead = window.get(end, (next - end) as usize).unwrap_or_default();
            let _ = writeln!(out, "    {:<10x} {:<30} (never executed)", window.addr(end).raw(), hex(dead));
        }
    }
}

fn describe_trampoline(out: &mut String, trampoline: &Trampoline) {
    let _ = writeln!(out, "  trampoline:");
    let mut done = 0;
    while let Some(rest) = trampoline.code().get(done..).filter(|r| !r.is_empty()) {
        let rip = trampoline.at().wrapping_offset(done as i64).as_rip();
        let meaning = match trampoline.guest_position(rip) {
            Some(GuestPosition::At(at)) => format!("; at {at}"),
            Some(GuestPosition::Call { ret, .. }) => format!("; called, back to {ret}"),
            None => String::new(),
        };
        done += instruction(out, rip, rest, &meaning).max(1);
    }
    let rest = &trampoline.bytes()[done..];
    let at = trampoline.at().wrapping_offset(done as i64);
    let _ = writeln!(out, "    {:<10x} {}", at.raw(), hex(rest));
}

/// Writes one line of disassembly, and gives the instruction's length.
fn instruction(out: &mut String, addr: GuestAddr, bytes: &[u8], note: &str) -> usize {
    let bytes = &bytes[..bytes.len().min(15)];
    let instr = Decoder::with_ip(64, bytes, addr.raw(), DecoderOptions::NONE).decode();
    let mut formatter = NasmFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_branch_leading_zeros(false);
    options.set_rip_relative_addresses(false);
    options.set_space_after_operand_separator(true);
    let mut text = String::new();
    formatter.format(&instr, &mut text);
    let len = instr.len();
    let line = format!("    {:<10x} {:<30} {text:<40} {note}", addr.raw(), hex(&bytes[..len]));
    let _ = writeln!(out, "{}", line.trim_end());
    len
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
}

/// Memory that gives one address: a description shows the trampoline where it was asked for.
struct Here(TrampolineAddr);

impl TrampolineMemory for Here {
    type Error = std::convert::Infallible;

    fn allocate(&mut self, _: usize, _: crate::Reach) -> Result<TrampolineAddr, Self::Error> {
        Ok(self.0)
    }

    fn free(&mut self, _: TrampolineAddr, _: usize) {}
}
