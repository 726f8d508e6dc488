//! Reads and writes that do not wait, whatever the open file's own flags say (preadv2(2), `RWF_NOWAIT`).

use super::{Argument, Errno, Words, raw};
use std::os::fd::BorrowedFd;

/// `RWF_NOWAIT`.
const RWF_NOWAIT: i32 = 8;

fn transfer(nr: libc::c_long, fd: BorrowedFd<'_>, part: &libc::iovec) -> Result<usize, Errno> {
    const OWN_POSITION: i64 = -1;
    let mut words = Words::default();
    fd.push_to(&mut words);
    words.push((&raw const *part).expose_provenance());
    1_usize.push_to(&mut words);
    OWN_POSITION.push_to(&mut words);
    0_usize.push_to(&mut words); // the high half of the offset, of which 64-bit kernels make no use
    RWF_NOWAIT.push_to(&mut words);
    // SAFETY: one segment, a slice that the callers below hold borrowed for the length of the call.
    unsafe { raw(nr, &words) }
}

/// Reads what is there; `EAGAIN` if that is nothing yet, `EOPNOTSUPP` for files that cannot tell.
pub(crate) fn read_now(fd: BorrowedFd<'_>, buf: &mut [u8]) -> Result<usize, Errno> {
    transfer(libc::SYS_preadv2, fd, &libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() })
}

/// Writes what there is room for; errors as for [`read_now`].
pub(crate) fn write_now(fd: BorrowedFd<'_>, buf: &[u8]) -> Result<usize, Errno> {
    let part = libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() };
    transfer(libc::SYS_pwritev2, fd, &part)
}
