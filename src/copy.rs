//! Copies to and from guest memory.
//!
//! process_vm_readv(2) and process_vm_writev(2) serve them: both stop at the first address that the guest itself
//! could not read or write (they do not override protections), and neither can touch the stub, for every range
//! is checked to lie below it. Where the host denies them a stub thread copies through its payload buffer: the
//! same results, one exchange for each 4 KiB instead of one host call for all.
//!
//! Whether the host denies them is decided by ptrace(2), "Ptrace access mode checking" (the check is
//! `PTRACE_MODE_ATTACH_REALCREDS`; the platform never attaches to anything):
//!
//! * The supervisor was not dumpable (prctl(2) `PR_SET_DUMPABLE` 0, a set-user-ID program, an executable that its
//!   user may not read) when it made the platform, and has no `CAP_SYS_PTRACE`: denied, for stub processes inherit
//!   that.
//! * It changed its user or group ids since, and has no `CAP_SYS_PTRACE`: denied.
//! * Yama's `kernel.yama.ptrace_scope` (Documentation/admin-guide/LSM/Yama.rst):
//!
//! | value | meaning | here |
//! |---|---|---|
//! | 0, or no Yama | any process of the same user | permitted |
//! | 1 | descendants only | permitted: every stub process is a child of the supervisor, and stays one because the leader clones with `CLONE_PARENT` |
//! | 2 | `CAP_SYS_PTRACE` only | root: permitted; an ordinary user: denied |
//! | 3 | nobody | denied for everybody |
//!
//! Denied is not an error: only the speed of large copies differs. Each denied attempt costs one host call, which
//! is little beside the exchange, so nothing is remembered and a change of the setting takes effect at once.

use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use systrap_stub::layout::MAX_USER_ADDRESS;
use systrap_stub::sysmsg::PAYLOAD_LEN;
use systrap_stub::wire::{COPY_FROM_GUEST, COPY_TO_GUEST, StubEvent};

use crate::address_space::SpaceInner;
use crate::context::HandOff;
use crate::{AddressSpace, CopyError, GuestAddr, PAGE_SIZE};

/// How much one call copies at most: while it runs the death of this stub process cannot be acknowledged, and
/// the one reaper of all stub processes would wait for it.
const MAX_COPY: usize = 16 << 20;

impl AddressSpace {
    /// Copies guest memory at `addr` to `buf`.
    ///
    /// # Errors
    ///
    /// [`CopyError`] with the number of bytes copied before the first that the guest could not read. A dead
    /// stub process reads as no memory at all.
    pub fn read(&self, addr: GuestAddr, buf: &mut [u8]) -> Result<(), CopyError> {
        self.inner.read_memory(addr, buf)
    }

    /// Copies `buf` to guest memory at `addr`.
    ///
    /// # Errors
    ///
    /// As [`AddressSpace::read`], for the first byte that the guest could not write.
    pub fn write(&self, addr: GuestAddr, buf: &[u8]) -> Result<(), CopyError> {
        self.inner.write_memory(addr, buf)
    }
}

impl SpaceInner {
    pub(crate) fn read_memory(&self, addr: GuestAddr, buf: &mut [u8]) -> Result<(), CopyError> {
        let wanted = buf.len();
        let reachable = reachable(addr, wanted);
        let mut copied = 0;
        while copied < reachable {
            let at = addr.raw() + copied as u64;
            let end = copied + (reachable - copied).min(MAX_COPY);
            match self.read_part(at, &mut buf[copied..end]) {
                0 => return Err(CopyError { copied }),
                count => copied += count,
            }
        }
        if copied == wanted { Ok(()) } else { Err(CopyError { copied }) }
    }

    pub(crate) fn write_memory(&self, addr: GuestAddr, buf: &[u8]) -> Result<(), CopyError> {
        let reachable = reachable(addr, buf.len());
        let mut copied = 0;
        while copied < reachable {
            let at = addr.raw() + copied as u64;
            let end = copied + (reachable - copied).min(MAX_COPY);
            match self.write_part(at, &buf[copied..end]) {
                0 => return Err(CopyError { copied }),
                count => copied += count,
            }
        }
        if copied == buf.len() { Ok(()) } else { Err(CopyError { copied }) }
    }

    fn read_part(&self, at: u64, buf: &mut [u8]) -> usize {
        let process = &self.process;
        let remote = RemoteIoVec { base: at as usize, len: buf.len() };
        let result = {
            let Ok(_alive) = process.hold_alive() else { return 0 };
            process_vm_readv(Pid::from_raw(process.pid()), &mut [IoSliceMut::new(buf)], &[remote])
        };
        match result {
            Ok(0) | Err(Errno::EFAULT) => self.read_page_by_page(at, buf),
            Ok(count) => count,
            Err(Errno::EPERM | Errno::ENOSYS | Errno::EACCES) => self.stub_read(at, buf),
            Err(_) => 0,
        }
    }

    /// The kernel reports a fault in the first page of a range as nothing copied; a range that crosses into
    /// unmapped memory is partly readable. One retry up to the page boundary tells.
    fn read_page_by_page(&self, at: u64, buf: &mut [u8]) -> usize {
        let to_boundary = (PAGE_SIZE - at % PAGE_SIZE) as usize;
        if to_boundary >= buf.len() { 0 } else { self.read_part(at, &mut buf[..to_boundary]) }
    }

    fn write_part(&self, at: u64, buf: &[u8]) -> usize {
        let process = &self.process;
        let remote = RemoteIoVec { base: at as usize, len: buf.len() };
        let result = {
            let Ok(_alive) = process.hold_alive() else { return 0 };
            process_vm_writev(Pid::from_raw(process.pid()), &[IoSlice::new(buf)], &[remote])
        };
        match result {
            Ok(0) | Err(Errno::EFAULT) => {
                let to_boundary = (PAGE_SIZE - at % PAGE_SIZE) as usize;
                if to_boundary >= buf.len() { 0 } else { self.write_part(at, &buf[..to_boundary]) }
            }
            Ok(count) => count,
            Err(Errno::EPERM | Errno::ENOSYS | Errno::EACCES) => self.stub_write(at, buf),
            Err(_) => 0,
        }
    }

    fn stub_read(&self, at: u64, buf: &mut [u8]) -> usize {
        let len = buf.len().min(PAYLOAD_LEN);
        let Some(copied) = self.stub_copy(
            COPY_FROM_GUEST,
            at,
            len,
            |_| {},
            |words, copied| {
                for (chunk, word) in buf[..copied].chunks_mut(8).zip(words) {
                    chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes()[..chunk.len()]);
                }
            },
        ) else {
            return 0;
        };
        copied
    }

    fn stub_write(&self, at: u64, buf: &[u8]) -> usize {
        let len = buf.len().min(PAYLOAD_LEN);
        let fill = |words: &[std::sync::atomic::AtomicU64]| {
            for (chunk, word) in buf[..len].chunks(8).zip(words) {
                let mut raw = [0_u8; 8];
                raw[..chunk.len()].copy_from_slice(chunk);
                word.store(u64::from_le_bytes(raw), Ordering::Relaxed);
            }
        };
        self.stub_copy(COPY_TO_GUEST, at, len, fill, |_, _| {}).unwrap_or(0)
    }

    /// Lets a pooled stub thread copy; returns how many bytes it claims to have copied.
    fn stub_copy(
        &self,
        reply: u32,
        at: u64,
        len: usize,
        before: impl FnOnce(&[std::sync::atomic::AtomicU64]),
        after: impl FnOnce(&[std::sync::atomic::AtomicU64], usize),
    ) -> Option<usize> {
        let thread = self.process.take_thread().ok()?;
        let sysmsg = thread.sysmsg();
        before(&sysmsg.payload);
        sysmsg.line.args[0].store(at, Ordering::Relaxed);
        sysmsg.line.args[1].store(len as u64, Ordering::Relaxed);
        let event = HandOff::detached(&self.platform, &thread).exchange(reply).ok()?;
        if event != StubEvent::Done {
            self.process.kill();
            return None;
        }
        let left = usize::try_from(sysmsg.line.args[0].load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        // The claim is at most what was asked for; behind it the payload holds what earlier copies left.
        let copied = len.checked_sub(left);
        after(&sysmsg.payload, copied.unwrap_or(0));
        thread.park();
        copied
    }
}

/// How many of `len` bytes at `addr` lie below the stub.
pub(crate) fn reachable(addr: GuestAddr, len: usize) -> usize {
    let room = MAX_USER_ADDRESS.saturating_sub(addr.raw());
    usize::try_from(room).unwrap_or(usize::MAX).min(len)
}
