//! Copies between the sentry and a guest's memory.

use super::abi::{IOV_MAX, Iovec, MAX_RW_COUNT, PATH_MAX};
use super::errno::Errno;
use crate::{AddressSpace, Context, CopyError, GuestAddr};
use std::ffi::CString;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Memory of a guest: an [`AddressSpace`], or a stand-in in tests.
pub(crate) trait GuestMemory {
    /// Copies in; the error says how far it got.
    fn read(&self, addr: GuestAddr, buf: &mut [u8]) -> Result<(), CopyError>;
    /// Copies out; the error says how far it got.
    fn write(&self, addr: GuestAddr, buf: &[u8]) -> Result<(), CopyError>;
    /// The bytes from there on that need no copy, if there are any.
    fn at_hand(&self, _addr: GuestAddr) -> Option<[u8; Context::SENT_LEN]> {
        None
    }
}

/// The guest's memory as the arguments of a call name it: what the call brought along needs no copy.
pub(crate) struct CallMemory<'a> {
    pub(crate) space: &'a AddressSpace,
    pub(crate) context: &'a Context,
}

impl GuestMemory for CallMemory<'_> {
    fn read(&self, addr: GuestAddr, buf: &mut [u8]) -> Result<(), CopyError> {
        if buf.len() <= Context::SENT_LEN
            && let Some(sent) = self.at_hand(addr)
        {
            buf.copy_from_slice(&sent[..buf.len()]);
            return Ok(());
        }
        self.space.read(addr, buf)
    }

    fn write(&self, addr: GuestAddr, buf: &[u8]) -> Result<(), CopyError> {
        self.space.write(addr, buf)
    }

    fn at_hand(&self, addr: GuestAddr) -> Option<[u8; Context::SENT_LEN]> {
        self.context.sent(addr)
    }
}

impl GuestMemory for AddressSpace {
    fn read(&self, addr: GuestAddr, buf: &mut [u8]) -> Result<(), CopyError> {
        AddressSpace::read(self, addr, buf)
    }

    fn write(&self, addr: GuestAddr, buf: &[u8]) -> Result<(), CopyError> {
        AddressSpace::write(self, addr, buf)
    }
}

/// What every guest memory offers on top of the plain copies.
pub(crate) trait GuestMemoryExt: GuestMemory {
    /// Reads one structure.
    fn read_object<T: FromBytes + IntoBytes>(&self, addr: GuestAddr) -> Result<T, Errno> {
        let mut object = T::new_zeroed();
        self.read(addr, object.as_mut_bytes())?;
        Ok(object)
    }

    /// Writes one structure.
    fn write_object<T: IntoBytes + Immutable>(&self, addr: GuestAddr, object: &T) -> Result<(), Errno> {
        Ok(self.write(addr, object.as_bytes())?)
    }

    /// Writes one structure unless the guest passed a null pointer.
    fn write_optional<T: IntoBytes + Immutable>(&self, addr: GuestAddr, object: &T) -> Result<(), Errno> {
        if addr == GuestAddr::NULL { Ok(()) } else { self.write_object(addr, object) }
    }

    /// Reads one structure unless the guest passed a null pointer.
    fn read_optional<T: FromBytes + IntoBytes>(&self, addr: GuestAddr) -> Result<Option<T>, Errno> {
        if addr == GuestAddr::NULL { Ok(None) } else { self.read_object(addr).map(Some) }
    }

    /// Reads a zero-terminated string of at most `limit` bytes including the zero; `too_long` if there is no zero.
    ///
    /// The string may end anywhere before unmapped memory, so a copy that stops early is fine once the zero is in
    /// the part that arrived.
    fn read_string(&self, addr: GuestAddr, limit: usize, too_long: Errno) -> Result<CString, Errno> {
        const FIRST: usize = 128;
        const REST: usize = 1024;
        if let Some(sent) = self.at_hand(addr)
            && let Some(end) = sent.iter().take(limit).position(|byte| *byte == 0)
        {
            return CString::new(&sent[..end]).map_err(|_| Errno::EINVAL);
        }
        let mut bytes = Vec::with_capacity(FIRST);
        while bytes.len() < limit {
            let old = bytes.len();
            let chunk = if old == 0 { FIRST } else { REST }.min(limit - old);
            bytes.resize(old + chunk, 0);
            let from = addr.checked_add(old as u64).ok_or(Errno::EFAULT)?;
            let arrived = match self.read(from, &mut bytes[old..]) {
                Ok(()) => chunk,
                Err(stopped) => stopped.copied.min(chunk),
            };
            if let Some(end) = bytes[old..old + arrived].iter().position(|byte| *byte == 0) {
                bytes.truncate(old + end);
                return CString::new(bytes).map_err(|_| Errno::EINVAL);
            }
            if arrived < chunk {
                return Err(Errno::EFAULT);
            }
        }
        Err(too_long)
    }

    /// Reads a path: `ENAMETOOLONG` past `PATH_MAX`.
    fn read_path(&self, addr: GuestAddr) -> Result<CString, Errno> {
        self.read_string(addr, PATH_MAX, Errno::ENAMETOOLONG)
    }

    /// Reads the segments of a vectored call and checks them as the kernel's `import_iovec` does.
    fn read_iovecs(&self, addr: GuestAddr, count: usize) -> Result<Vec<Iovec>, Errno> {
        if count > IOV_MAX {
            return Err(Errno::EINVAL);
        }
        let mut segments = vec![Iovec::default(); count];
        self.read(addr, segments.as_mut_bytes())?;
        let mut total = 0_u64;
        for segment in &mut segments {
            if segment.len > i64::MAX as u64 {
                return Err(Errno::EINVAL);
            }
            segment.len = segment.len.min(MAX_RW_COUNT as u64 - total);
            total += segment.len;
        }
        Ok(segments)
    }
}

impl<M: GuestMemory + ?Sized> GuestMemoryExt for M {}

#[cfg(test)]
pub(crate) mod fake {
    //! Guest memory for unit tests: one readable and writable range, holes everywhere else.

    use super::*;
    use std::cell::RefCell;

    /// One mapped range.
    pub(crate) struct FakeMemory {
        pub(crate) base: u64,
        pub(crate) bytes: RefCell<Vec<u8>>,
    }

    impl FakeMemory {
        pub(crate) fn new(base: u64, len_bytes: usize) -> Self {
            Self { base, bytes: RefCell::new(vec![0; len_bytes]) }
        }

        fn within(&self, addr: GuestAddr, len: usize) -> (usize, usize) {
            let size = self.bytes.borrow().len();
            match addr.raw().checked_sub(self.base).and_then(|start| usize::try_from(start).ok()) {
                Some(start) if start <= size => (start, len.min(size - start)),
                _ => (0, 0),
            }
        }
    }

    impl GuestMemory for FakeMemory {
        fn read(&self, addr: GuestAddr, buf: &mut [u8]) -> Result<(), CopyError> {
            let (start, copied) = self.within(addr, buf.len());
            buf[..copied].copy_from_slice(&self.bytes.borrow()[start..start + copied]);
            if copied == buf.len() { Ok(()) } else { Err(CopyError { copied }) }
        }

        fn write(&self, addr: GuestAddr, buf: &[u8]) -> Result<(), CopyError> {
            let (start, copied) = self.within(addr, buf.len());
            self.bytes.borrow_mut()[start..start + copied].copy_from_slice(&buf[..copied]);
            if copied == buf.len() { Ok(()) } else { Err(CopyError { copied }) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fake::FakeMemory;
    use super::*;

    #[test]
    fn a_string_may_end_right_before_a_hole() {
        let memory = FakeMemory::new(0x1000, 4096);
        memory.write(GuestAddr::new(0x1ffc), b"abc\0").unwrap();
        assert_eq!(memory.read_path(GuestAddr::new(0x1ffc)).unwrap().as_bytes(), b"abc");
        memory.write(GuestAddr::new(0x1ffc), b"abcd").unwrap();
        assert_eq!(memory.read_path(GuestAddr::new(0x1ffc)), Err(Errno::EFAULT));
        assert_eq!(memory.read_path(GuestAddr::NULL), Err(Errno::EFAULT));
        assert_eq!(memory.read_path(GuestAddr::new(u64::MAX)), Err(Errno::EFAULT));
    }

    #[test]
    fn a_string_without_end_is_too_long() {
        let memory = FakeMemory::new(0x1000, 8192);
        memory.write(GuestAddr::new(0x1000), &[b'x'; 8192]).unwrap();
        assert_eq!(memory.read_path(GuestAddr::new(0x1000)), Err(Errno::ENAMETOOLONG));
        memory.write(GuestAddr::new(0x1000 + 4095), b"\0").unwrap();
        assert_eq!(memory.read_path(GuestAddr::new(0x1000)).unwrap().as_bytes().len(), 4095);
    }

    #[test]
    fn segments_are_capped_together() {
        let memory = FakeMemory::new(0x1000, 4096);
        let segments = [Iovec { base: 1, len: 0x7fff_0000 }, Iovec { base: 2, len: 0x7fff_0000 }];
        memory.write(GuestAddr::new(0x1000), segments.as_bytes()).unwrap();
        let read = memory.read_iovecs(GuestAddr::new(0x1000), 2).unwrap();
        assert_eq!(read.iter().map(|segment| segment.len).sum::<u64>(), MAX_RW_COUNT as u64);
        assert_eq!(memory.read_iovecs(GuestAddr::new(0x1000), 1025).unwrap_err(), Errno::EINVAL);
        memory.write_object(GuestAddr::new(0x1008), &-1_i64).unwrap();
        assert_eq!(memory.read_iovecs(GuestAddr::new(0x1000), 2).unwrap_err(), Errno::EINVAL);
    }
}
