//! Who the calling thread is to the host kernel.
//!
//! Credentials belong to threads; the C library's calls change those of all threads, the raw calls those of one. The
//! thread that runs a guest's task takes the task's file system ids, groups and effective capabilities, by which the
//! host judges file calls. Its real ids stay the supervisor's: they are what lets it copy guest memory.

use super::{Argument, Errno, Words, raw};
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// What the host judges the file calls of a thread by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) fs_uid: u32,
    pub(crate) fs_gid: u32,
    /// In ascending order.
    pub(crate) groups: Arc<[u32]>,
    pub(crate) effective_capabilities: u64,
}

/// Why a thread did not become what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AssumeError {
    /// The host refuses; the thread is who it was.
    Refused,
    /// The host refuses both the change and the way back: the thread must not work for a guest any more.
    Stranded,
}

/// Some thread has been somebody else: a thread that it has made starts as that.
static EVER_CHANGED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Who the thread is; `None` until it was told.
    static CURRENT: RefCell<Option<Identity>> = const { RefCell::new(None) };
}

const KEEP: u32 = u32::MAX;

fn call(nr: libc::c_long, numbers: &[u64]) -> Result<usize, Errno> {
    let mut words = Words::default();
    for number in numbers {
        number.push_to(&mut words);
    }
    // SAFETY: every call of this module that comes here takes numbers only.
    unsafe { raw(nr, &words) }
}

/// The file system user id of the calling thread.
pub(crate) fn fs_uid() -> u32 {
    call(libc::SYS_setfsuid, &[KEEP.into()]).unwrap_or_default() as u32
}

/// The file system group id of the calling thread.
pub(crate) fn fs_gid() -> u32 {
    call(libc::SYS_setfsgid, &[KEEP.into()]).unwrap_or_default() as u32
}

/// The supplementary groups of the calling thread.
pub(crate) fn supplementary_groups() -> Vec<u32> {
    let Ok(count) = call(libc::SYS_getgroups, &[0, 0]) else { return Vec::new() };
    let mut groups = vec![0_u32; count];
    let mut words = Words::default();
    groups.len().push_to(&mut words);
    groups.as_mut_ptr().expose_provenance().push_to(&mut words);
    // SAFETY: the kernel writes at most as many groups as the first word says, which is the buffer's length.
    match unsafe { raw(libc::SYS_getgroups, &words) } {
        Ok(count) => groups.truncate(count),
        Err(_) => groups.clear(),
    }
    groups
}

fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    let mut words = Words::default();
    groups.len().push_to(&mut words);
    groups.as_ptr().expose_provenance().push_to(&mut words);
    // SAFETY: the kernel reads as many groups as the first word says.
    unsafe { raw(libc::SYS_setgroups, &words) }.map(drop)
}

/// `_LINUX_CAPABILITY_VERSION_3`, for the calling thread.
const CAPABILITY_HEADER: [u32; 2] = [0x2008_0522, 0];

fn capability_call(nr: libc::c_long, sets: &mut [u32; 6]) -> Result<(), Errno> {
    let mut header = CAPABILITY_HEADER;
    let mut words = Words::default();
    (&mut header).push_to(&mut words);
    sets.push_to(&mut words);
    // SAFETY: version 3 of the interface has a header of two words and two times three words of sets.
    unsafe { raw(nr, &words) }.map(drop)
}

/// Effective, permitted and inheritable capabilities of the calling thread.
pub(crate) fn capabilities() -> [u64; 3] {
    let mut sets = [0; 6];
    if capability_call(libc::SYS_capget, &mut sets).is_err() {
        return [0; 3];
    }
    let [e0, p0, i0, e1, p1, i1] = sets.map(u64::from);
    [e0 | e1 << 32, p0 | p1 << 32, i0 | i1 << 32]
}

/// Sets the effective capabilities, as far as they are permitted.
fn set_effective_capabilities(wanted: u64) -> Result<(), Errno> {
    let [effective, permitted, inheritable] = capabilities();
    let wanted = wanted & permitted;
    if wanted == effective {
        return Ok(());
    }
    let halves = |set: u64| (set as u32, (set >> 32) as u32);
    let ((e0, e1), (p0, p1), (i0, i1)) = (halves(wanted), halves(permitted), halves(inheritable));
    capability_call(libc::SYS_capset, &mut [e0, p0, i0, e1, p1, i1])
}

fn prctl(option: i32, arg: u64, arg2: u64) -> Result<usize, Errno> {
    call(libc::SYS_prctl, &[option as u64, arg, arg2, 0, 0])
}

/// Whether a capability is in the bounding set; `None` if the kernel knows none of that number.
pub(crate) fn bounding_capability(capability: u32) -> Option<bool> {
    prctl(libc::PR_CAPBSET_READ, capability.into(), 0).ok().map(|set| set != 0)
}

/// Whether a capability is in the ambient set.
pub(crate) fn ambient_capability(capability: u32) -> bool {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_IS_SET as u64, capability.into()) == Ok(1)
}

/// `PR_GET_SECUREBITS`.
pub(crate) fn securebits() -> u32 {
    prctl(libc::PR_GET_SECUREBITS, 0, 0).unwrap_or_default() as u32
}

/// The signal that the calling thread's process is sent when its parent dies.
fn death_signal() -> i32 {
    let mut signo = [0_i32];
    let mut words = Words::default();
    libc::PR_GET_PDEATHSIG.push_to(&mut words);
    (&mut signo).push_to(&mut words);
    // SAFETY: this prctl writes one int.
    let _ = unsafe { raw(libc::SYS_prctl, &words) };
    signo[0]
}

/// Makes effective what is permitted: whatever the thread was, that is the supervisor's.
pub(super) fn raise_capabilities() -> Result<(), Errno> {
    set_effective_capabilities(u64::MAX)
}

/// Changes who the thread is. The kernel resets two attributes of one whose ids change (`commit_creds`): whether memory
/// can be dumped, which is the whole process's, and what the thread's process is told when its parent dies.
pub(super) fn keeping_process_attributes<T>(change: impl FnOnce() -> T) -> T {
    // Asked before the first change: later another thread may be in the midst of one.
    static DUMPABLE: OnceLock<bool> = OnceLock::new();
    let dumpable = *DUMPABLE.get_or_init(|| prctl(libc::PR_GET_DUMPABLE, 0, 0) == Ok(1));
    let signo = death_signal();
    let result = change();
    if dumpable {
        let _ = prctl(libc::PR_SET_DUMPABLE, 1, 0);
    }
    if signo != 0 {
        let _ = prctl(libc::PR_SET_PDEATHSIG, signo as u64, 0);
    }
    result
}

pub(super) fn become_identity(identity: &Identity) -> Result<(), Errno> {
    raise_capabilities()?;
    let mut groups = supplementary_groups();
    groups.sort_unstable();
    if groups[..] != identity.groups[..] {
        set_groups(&identity.groups)?;
    }
    // These two have no error but not to change anything.
    let _ = call(libc::SYS_setfsgid, &[identity.fs_gid.into()]);
    let _ = call(libc::SYS_setfsuid, &[identity.fs_uid.into()]);
    if (fs_uid(), fs_gid()) != (identity.fs_uid, identity.fs_gid) {
        return Err(Errno::EPERM);
    }
    set_effective_capabilities(identity.effective_capabilities)
}

/// Who the calling thread is now.
fn own_identity() -> Identity {
    let mut groups = supplementary_groups();
    groups.sort_unstable();
    let [effective_capabilities, ..] = capabilities();
    Identity { fs_uid: fs_uid(), fs_gid: fs_gid(), groups: groups.into(), effective_capabilities }
}

/// Has the calling thread act as `wanted` from now on.
pub(crate) fn assume(wanted: &Identity) -> Result<(), AssumeError> {
    let known = CURRENT.with_borrow(|current| current.as_ref() == Some(wanted));
    if known {
        return Ok(());
    }
    let old = own_identity();
    if old == *wanted {
        CURRENT.set(Some(old));
        return Ok(());
    }
    EVER_CHANGED.store(true, Ordering::SeqCst);
    let result = keeping_process_attributes(|| match become_identity(wanted) {
        Ok(()) => Ok(wanted.clone()),
        Err(_) => Err(become_identity(&old).map(|()| old)),
    });
    match result {
        Ok(identity) => {
            CURRENT.set(Some(identity));
            Ok(())
        }
        Err(Ok(old)) => {
            CURRENT.set(Some(old));
            Err(AssumeError::Refused)
        }
        Err(Err(_)) => {
            CURRENT.set(None);
            Err(AssumeError::Stranded)
        }
    }
}

/// The same for a thread that starts or ends work for a guest: nothing to do while no thread was ever somebody else and
/// `wanted` is who the supervisor is.
pub(crate) fn assume_at_start(wanted: &Identity, supervisor: &Identity) -> Result<(), AssumeError> {
    if wanted == supervisor && !EVER_CHANGED.load(Ordering::SeqCst) { Ok(()) } else { assume(wanted) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_takes_an_identity_and_gives_it_back() {
        std::thread::spawn(|| {
            let own = own_identity();
            let other =
                Identity { fs_uid: 1234, fs_gid: 4321, groups: Arc::new([7, 9]), effective_capabilities: 0 };
            let [_, permitted, _] = capabilities();
            match assume(&other) {
                Ok(()) => assert_eq!(own_identity(), other),
                Err(error) => {
                    // Without the capabilities nothing has changed.
                    assert_eq!((error, permitted & 1 << 7), (AssumeError::Refused, 0));
                    assert_eq!(own_identity(), own);
                }
            }
            assume(&own).unwrap();
            assert_eq!(own_identity(), own);
        })
        .join()
        .unwrap();
    }
}
