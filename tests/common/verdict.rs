//! Holding host calls that were observed against the list of those that may be made.

use systrap::seccomp::{FilterKind, Row, Test};

use crate::observer::{Passed, Role};

pub const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// Whether a row admits a call: the meaning of the list, written a second time.
pub fn admits(row: &Row, call: &Passed, base: u64) -> bool {
    let filters_fit = match call.role {
        Role::Guest => row.filter == FilterKind::Guest,
        Role::Base => true,
        Role::Supervisor | Role::Template => false,
    };
    filters_fit
        && call.arch == AUDIT_ARCH_X86_64
        && call.ip == base + row.site.ip_offset() as u64
        && call.nr == row.nr as u64
        && row.conditions.iter().all(|condition| {
            let arg = call.args[usize::from(condition.arg)];
            match condition.test {
                Test::Eq(value) => arg == value,
                Test::Eq32(value) => arg & 0xffff_ffff == u64::from(value),
                Test::Lt(value) => arg < value,
                Test::Ge(value) => arg >= value,
                Test::Le(value) => arg <= value,
                Test::OnlyBits(mask) => arg | mask == mask,
            }
        })
}
