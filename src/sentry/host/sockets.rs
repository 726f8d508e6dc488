//! Host calls on sockets, with the structures that they take beside plain slices.

use super::{Argument, Attention, Errno, Words, interruptible, owned, raw};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

/// The size of `struct sockaddr_storage`: no address is longer.
pub(crate) const ADDRESS_MAX: usize = size_of::<libc::sockaddr_storage>();

/// Room for an address that a call writes, with its length.
pub(crate) struct AddressBuffer {
    bytes: [u8; ADDRESS_MAX],
    len: u32,
}

impl AddressBuffer {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; ADDRESS_MAX], len: 0 }
    }

    /// The address, as far as there was room.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len as usize).unwrap_or(&self.bytes)
    }

    /// Puts another address in its place.
    pub(crate) fn set(&mut self, address: &[u8]) {
        let len = address.len().min(ADDRESS_MAX);
        self.bytes[..len].copy_from_slice(&address[..len]);
        self.len = len as u32;
    }

    /// How long the address is; a Unix address with a path of full length has a zero more than there is room for.
    pub(crate) fn full_len(&self) -> u32 {
        self.len
    }
}

impl Argument for &mut AddressBuffer {
    #[inline]
    fn push_to(self, words: &mut Words) {
        self.len = ADDRESS_MAX as u32; // what the kernel may write, whatever an earlier call left here
        words.push(self.bytes.as_mut_ptr().expose_provenance());
        words.push((&raw mut self.len).expose_provenance());
    }
}

impl Argument for Option<&mut AddressBuffer> {
    #[inline]
    fn push_to(self, words: &mut Words) {
        match self {
            Some(buffer) => buffer.push_to(words),
            None => {
                words.push(0);
                words.push(0);
            }
        }
    }
}

impl Argument for Option<&[u8]> {
    #[inline]
    fn push_to(self, words: &mut Words) {
        match self {
            Some(bytes) => bytes.push_to(words),
            None => {
                words.push(0);
                words.push(0);
            }
        }
    }
}

/// Room for the value of an option, with its length.
pub(crate) struct OptionBuffer {
    bytes: Vec<u8>,
    len: u32,
}

impl OptionBuffer {
    pub(crate) fn new(len_bytes: usize) -> Self {
        Self { bytes: vec![0; len_bytes], len: 0 }
    }

    /// What the call wrote.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len as usize).unwrap_or(&self.bytes)
    }

    /// The length that the call reported.
    pub(crate) fn full_len(&self) -> u32 {
        self.len
    }
}

impl Argument for &mut OptionBuffer {
    #[inline]
    fn push_to(self, words: &mut Words) {
        self.len = self.bytes.len() as u32;
        words.push(self.bytes.as_mut_ptr().expose_provenance());
        words.push((&raw mut self.len).expose_provenance());
    }
}

/// Whether a call on a message may wait, and what ends the wait.
pub(crate) type MayWait<'a> = Option<&'a Attention>;

fn message_call(
    may_wait: MayWait<'_>,
    nr: libc::c_long,
    fd: BorrowedFd<'_>,
    message: &mut libc::msghdr,
    flags: i32,
) -> Result<usize, Errno> {
    let mut words = Words::default();
    fd.push_to(&mut words);
    words.push((&raw mut *message).expose_provenance());
    flags.push_to(&mut words);
    // SAFETY: the header describes slices that the callers below hold borrowed for the length of the call.
    unsafe {
        match may_wait {
            Some(attention) => interruptible::wait(attention, nr, &words),
            None => raw(nr, &words),
        }
    }
}

fn empty_header() -> libc::msghdr {
    // SAFETY: zeroes are null pointers and lengths of zero, which is a valid header.
    unsafe { std::mem::zeroed() }
}

/// sendmsg(2). Descriptors in `control` are the host's.
pub(crate) fn sendmsg(
    may_wait: MayWait<'_>,
    fd: BorrowedFd<'_>,
    name: Option<&[u8]>,
    data: &[u8],
    control: &[u8],
    flags: i32,
) -> Result<usize, Errno> {
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let mut message = empty_header();
    if let Some(name) = name {
        message.msg_name = name.as_ptr().cast_mut().cast();
        message.msg_namelen = name.len() as u32;
    }
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if !control.is_empty() {
        message.msg_control = control.as_ptr().cast_mut().cast();
        message.msg_controllen = control.len();
    }
    message_call(may_wait, libc::SYS_sendmsg, fd, &mut message, flags)
}

/// What recvmsg(2) brought.
pub(crate) struct Received {
    /// The length of the data; with `MSG_TRUNC` it may be more than there was room for.
    pub(crate) len: usize,
    pub(crate) control_len: usize,
    pub(crate) flags: i32,
    /// The descriptors that came along, in their order, close-on-exec.
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// recvmsg(2).
pub(crate) fn recvmsg(
    may_wait: MayWait<'_>,
    fd: BorrowedFd<'_>,
    name: Option<&mut AddressBuffer>,
    data: &mut [u8],
    control: &mut [u8],
    flags: i32,
) -> Result<Received, Errno> {
    let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    let mut message = empty_header();
    let mut name = name;
    if let Some(name) = &mut name {
        message.msg_name = name.bytes.as_mut_ptr().cast();
        message.msg_namelen = ADDRESS_MAX as u32;
    }
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if !control.is_empty() {
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = control.len();
    }
    let len = message_call(may_wait, libc::SYS_recvmsg, fd, &mut message, flags | libc::MSG_CMSG_CLOEXEC)?;
    if let Some(name) = name {
        name.len = message.msg_namelen;
    }
    let control_len = message.msg_controllen.min(control.len());
    let mut descriptors = Vec::new();
    for (level, kind, data) in control_messages(&control[..control_len]).flatten() {
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            descriptors.extend(data.chunks_exact(4).map(|fd| {
                // The kernel has just made these descriptors for this call: nobody else owns them.
                owned(u32::from_ne_bytes([fd[0], fd[1], fd[2], fd[3]]) as usize)
            }));
        }
    }
    Ok(Received { len, control_len, flags: message.msg_flags, descriptors })
}

/// The size of `struct cmsghdr`.
pub(crate) const CONTROL_HEADER: usize = 16;

/// The control messages of a buffer (level, type, data), by the kernel's rules (`CMSG_OK`): the first that is
/// malformed gives `EINVAL` and is the last.
pub(crate) fn control_messages(buffer: &[u8]) -> impl Iterator<Item = Result<(i32, i32, &[u8]), Errno>> {
    let mut rest = buffer;
    std::iter::from_fn(move || {
        let (header, _) = rest.split_first_chunk::<CONTROL_HEADER>()?;
        let [a, b, c, d, e, f, g, h, level @ .., m, n, o, p] = *header;
        let len = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        let (level, kind) = (i32::from_ne_bytes(level), i32::from_ne_bytes([m, n, o, p]));
        let Some(len) = usize::try_from(len).ok().filter(|len| (CONTROL_HEADER..=rest.len()).contains(len))
        else {
            rest = &[];
            return Some(Err(Errno::EINVAL));
        };
        let data = &rest[CONTROL_HEADER..len];
        rest = rest.get(len.next_multiple_of(8)..).unwrap_or_default();
        Some(Ok((level, kind, data)))
    })
}

/// `socketpair`, both ends owned.
pub(crate) fn socketpair(domain: i32, kind: i32, protocol: i32) -> Result<(OwnedFd, OwnedFd), Errno> {
    let mut fds = [0_i32; 2];
    let mut words = Words::default();
    for number in [domain, kind, protocol] {
        number.push_to(&mut words);
    }
    (&mut fds).push_to(&mut words);
    // SAFETY: socketpair writes two ints into the array.
    unsafe { raw(libc::SYS_socketpair, &words) }?;
    Ok((owned(fds[0] as usize), owned(fds[1] as usize)))
}

/// `SO_ATTACH_FILTER` and its kin: a classic filter, of which the host checks every instruction.
pub(crate) fn attach_filter(fd: BorrowedFd<'_>, option: i32, program: &[u8]) -> Result<(), Errno> {
    const INSTRUCTION: usize = size_of::<libc::sock_filter>();
    let header = libc::sock_fprog {
        len: u16::try_from(program.len() / INSTRUCTION).map_err(|_| Errno::EINVAL)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: the header outlives the call and describes the slice, which the kernel copies.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const header).cast(),
            size_of_val(&header) as u32,
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}

/// `SIOCGIFCONF`: how many bytes the whole list has, and those of them that are at most 64 KiB.
pub(crate) fn interfaces(fd: BorrowedFd<'_>) -> Result<(usize, Vec<u8>), Errno> {
    /// `struct ifconf`: room for the list, which the call sets to what it wrote, and where that goes.
    #[repr(C)]
    struct Request {
        len: i32,
        list: *mut u8,
    }
    const ROOM: usize = 64 << 10;
    let ask = |list: *mut u8, len: usize| {
        let mut request = Request { len: len as i32, list };
        let mut words = Words::default();
        fd.push_to(&mut words);
        (libc::SIOCGIFCONF as u32).push_to(&mut words);
        words.push((&raw mut request).expose_provenance());
        // SAFETY: the request outlives the call and describes the list below, or none.
        unsafe { raw(libc::SYS_ioctl, &words) }.map(|_| usize::try_from(request.len).unwrap_or(0))
    };
    let needed = ask(std::ptr::null_mut(), 0)?;
    let mut list = vec![0; needed.min(ROOM)];
    let filled = ask(list.as_mut_ptr(), list.len())?;
    list.truncate(filled);
    Ok((needed, list))
}

/// Whether two descriptors of this process mean the same open file; `false` where the host does not say.
pub(crate) fn is_same_open_file(first: BorrowedFd<'_>, second: BorrowedFd<'_>) -> bool {
    const KCMP_FILE: i32 = 0;
    let mut words = Words::default();
    let own = std::process::id() as i32;
    own.push_to(&mut words);
    own.push_to(&mut words);
    KCMP_FILE.push_to(&mut words);
    first.push_to(&mut words);
    second.push_to(&mut words);
    // SAFETY: kcmp takes numbers only.
    unsafe { raw(libc::SYS_kcmp, &words) == Ok(0) }
}

/// Runs something in a thread whose working directory and file mode mask are these, apart from all other threads:
/// `bind` makes a file, and takes neither a directory nor a mode.
pub(crate) fn with_directory<T: Send>(
    directory: BorrowedFd<'_>,
    umask: u32,
    run: impl FnOnce() -> Result<T, Errno> + Send,
) -> Result<T, Errno> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .spawn_scoped(scope, || {
                super::unshare(libc::CLONE_FS)?;
                super::fchdir(directory)?;
                super::umask(umask)?;
                run()
            })
            .map_err(|_| Errno::ENOMEM)?;
        thread.join().unwrap_or(Err(Errno::ENOMEM))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_messages_are_read_by_the_kernels_rules() {
        let message = |len: u64, kind: i32, data: &[u8]| {
            [&len.to_ne_bytes()[..], &1_i32.to_ne_bytes(), &kind.to_ne_bytes(), data].concat()
        };
        let two = [message(20, 1, &[7, 0, 0, 0, 0, 0, 0, 0]), message(17, 2, &[9])].concat();
        let read: Vec<_> = control_messages(&two).collect();
        assert_eq!(read, [Ok((1, 1, &[7, 0, 0, 0][..])), Ok((1, 2, &[9][..]))]);
        for bad in [0, 15, 25, u64::MAX] {
            let buffer = message(bad, 1, &[0; 8]);
            assert_eq!(control_messages(&buffer).collect::<Vec<_>>(), [Err(Errno::EINVAL)], "{bad}");
        }
        assert_eq!(control_messages(&[0; 15]).count(), 0);
    }

    #[test]
    fn a_mask_and_a_directory_of_a_thread_are_its_own() {
        let root = std::fs::File::open("/").unwrap();
        use std::os::fd::AsFd as _;
        let before = std::env::current_dir().unwrap();
        let there = with_directory(root.as_fd(), 0o77, || Ok(std::env::current_dir().unwrap())).unwrap();
        assert_eq!(there.to_str(), Some("/"));
        assert_eq!(std::env::current_dir().unwrap(), before);
    }
}
