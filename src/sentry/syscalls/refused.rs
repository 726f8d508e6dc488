//! Calls that are known and refused on purpose, each with the errno that a kernel gives which was built without it, or
//! that refuses it to an unprivileged process.

use crate::sentry::errno::Errno;

/// A call that is always refused.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusal {
    pub(super) nr: u32,
    pub(super) errno: Errno,
    pub(super) why: &'static str,
}

/// What stands behind a refusal; the groups of the list.
const OLD: &str = "no x86-64 kernel has it";
const ABSENT: &str = "as on a kernel built without it";
const MACHINE: &str = "the machine is the host's";
const MOUNTS: &str = "mounts and namespaces are the host's";
const WATCHING: &str = "watching and filtering processes is the supervisor's";
const RINGS: &str = "shared rings would go around the supervisor";

macro_rules! refusals {
    ($($why:ident $errno:ident [$($nr:literal),* $(,)?])*) => {
        &[$($(Refusal { nr: $nr, errno: Errno::$errno, why: $why },)*)*]
    };
}

const REFUSALS: &[Refusal] = refusals! {
    OLD ENOSYS [134, 136, 139, 156, 174, 177, 178, 180, 181, 182, 183, 184, 185, 205, 211, 212, 214, 215, 236]
    // modify_ldt, quotactl, the keys, remap_file_pages, userfaultfd, protection keys, rseq's slices, statmount and kin
    ABSENT ENOSYS [
        154, 179, 216, 248, 249, 250, 301, 323, 329, 330, 331, 443, 447, 448, 453, 457, 458, 459, 460, 461, 462, 463,
        464, 465, 466, 468, 469,
    ]
    // acct, settimeofday, swap, reboot, host names, modules, kexec, syslog, I/O ports
    MACHINE EPERM [
        103, 163, 164, 167, 168, 169, 170, 171, 172, 173, 175, 176, 246, 305, 313, 320,
    ]
    // pivot_root, chroot, mount, umount2, setns, open_by_handle_at, open_tree … fspick, mount_setattr, open_tree_attr
    MOUNTS EPERM [155, 161, 165, 166, 300, 304, 308, 428, 429, 430, 431, 432, 433, 442, 467]
    // A file system that hands out no handles.
    MOUNTS EOPNOTSUPP [303]
    // ptrace, perf_event_open, kcmp, seccomp, bpf, landlock
    WATCHING ENOSYS [101, 298, 312, 317, 321, 444, 445, 446]
    // io_setup … io_cancel, io_pgetevents, io_uring
    RINGS ENOSYS [206, 207, 208, 209, 210, 333, 425, 426, 427]
};

/// The refusal of a call, if it is on the list.
pub(super) fn lookup(nr: u32) -> Option<&'static Refusal> {
    REFUSALS.iter().find(|refusal| refusal.nr == nr)
}

#[cfg(test)]
mod tests {
    use super::super::{names, table};
    use super::*;

    #[test]
    fn a_call_is_refused_once_and_not_also_implemented() {
        let mut seen = std::collections::BTreeSet::new();
        for refusal in REFUSALS {
            assert!(seen.insert(refusal.nr), "{} is listed twice", refusal.nr);
            assert!(
                table::TABLE[refusal.nr as usize].is_none(),
                "{:?} is implemented",
                names::lookup(refusal.nr)
            );
        }
    }
}
