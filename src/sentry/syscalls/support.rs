//! Which calls there are, for documentation and tests.

use super::{TABLE_LEN, names, refused, table};
use crate::sentry::errno::Errno;

/// What becomes of a system call of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Support {
    /// The sentry has a handler for it.
    Implemented,
    /// It is refused on purpose.
    Refused {
        /// With this error.
        errno: Errno,
        /// The reason.
        why: &'static str,
    },
    /// Nothing was decided: it fails with `ENOSYS`, and is counted as not implemented.
    Missing,
}

/// Every call number up to the highest in the table, with the kernel's name if it has one, and what becomes of it.
pub fn call_support() -> impl Iterator<Item = (u32, Option<&'static str>, Support)> {
    (0..TABLE_LEN as u32).map(|nr| {
        let support = match (table::TABLE.get(nr as usize), refused::lookup(nr)) {
            (Some(Some(_)), _) => Support::Implemented,
            (_, Some(refusal)) => Support::Refused { errno: refusal.errno, why: refusal.why },
            _ => Support::Missing,
        };
        (nr, names::lookup(nr), support)
    })
}
