//! Socket options. Those whose value is plain data are the host's; those that hold addresses, descriptors or process ids
//! are translated, or refused as by a kernel that does not have them.

use super::super::SysResult;
use super::super::args::{Fd, OutLength, SocketLevel, SocketOption};
use super::peer;
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::file::File;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host::{self, OptionBuffer};
use crate::sentry::network;
use crate::sentry::task::Task;
use std::ops::RangeInclusive;
use std::os::fd::AsFd as _;

type Names = &'static [RangeInclusive<i32>];

/// Options that both calls pass on.
fn plain(level: i32) -> Names {
    match level {
        // Not among them: filters (26, 27, 50-52), peers (17, 28, 31, 59, 76, 77), zero-copy (60, 79, 80).
        libc::SOL_SOCKET => {
            &[1..=2, 5..=16, 18..=21, 25..=25, 29..=30, 32..=37, 40..=44, 45..=49, 53..=53, 61..=75]
        }
        // 19-22 are TCP_REPAIR, 31 is TCP_ULP, 35 maps memory.
        libc::IPPROTO_TCP => &[1..=10, 12..=13, 16..=18, 23..=25, 27..=27, 30..=30, 33..=34, 36..=37],
        // 16 and 17 are IPsec's, 64 and above those of packet filters.
        libc::IPPROTO_IP => &[1..=8, 10..=13, 15..=15, 18..=25, 32..=34, 49..=51],
        // 32 writes to what it is given, 34 and 35 are IPsec's, 64 and above those of packet filters.
        libc::IPPROTO_IPV6 => {
            &[1..=5, 7..=8, 16..=19, 22..=23, 25..=26, 29..=31, 33..=33, 49..=60, 62..=62, 66..=67, 70..=78]
        }
        libc::IPPROTO_UDP => &[1..=1, 101..=104],
        libc::SOL_NETLINK => &[3..=5, 8..=8, 10..=12],
        libc::SOL_PACKET => &[8..=9],
        libc::IPPROTO_RAW | libc::IPPROTO_ICMPV6 => &[1..=1],
        libc::AF_VSOCK => &[0..=2, 6..=8],
        _ => &[],
    }
}

/// Options that can only be set: memberships.
fn settable(level: i32) -> Names {
    match level {
        libc::SOL_SOCKET => &[27..=27],
        libc::IPPROTO_TCP => &[14..=14],
        libc::IPPROTO_IP => &[35..=48],
        libc::IPPROTO_IPV6 => &[20..=21, 27..=28, 42..=48],
        libc::SOL_NETLINK | libc::SOL_PACKET => &[1..=2],
        _ => &[],
    }
}

/// Options that can only be asked for.
fn readable(level: i32) -> Names {
    match level {
        libc::SOL_SOCKET => &[3..=4, 28..=28, 31..=31, 38..=39, 55..=57, 59..=59],
        libc::IPPROTO_TCP => &[11..=11, 26..=26, 28..=28],
        libc::IPPROTO_IP => &[14..=14],
        libc::IPPROTO_IPV6 => &[24..=24, 61..=61],
        libc::SOL_NETLINK => &[9..=9],
        libc::SOL_PACKET => &[6..=6],
        _ => &[],
    }
}

fn is_in(names: Names, name: i32) -> bool {
    names.iter().any(|range| range.contains(&name))
}

/// `SO_ATTACH_REUSEPORT_CBPF`, a classic filter as `SO_ATTACH_FILTER`.
const SO_ATTACH_REUSEPORT_CBPF: i32 = 51;
/// No value is longer that does not come from a list of the caller's own making.
const MOST: usize = 64 << 10;

pub(in super::super) fn setsockopt(
    task: &mut Task,
    fd: Fd,
    SocketLevel(level): SocketLevel,
    SocketOption(name): SocketOption,
    value: GuestAddr,
    len: i32,
) -> SysResult {
    let file = task.file(fd.0)?;
    let socket = file.as_socket()?;
    let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?.min(MOST);
    if level == libc::SOL_SOCKET && matches!(name, libc::SO_ATTACH_FILTER | SO_ATTACH_REUSEPORT_CBPF) {
        return attach_filter(task, &file, name, value, len);
    }
    if !is_in(plain(level), name) && !is_in(settable(level), name) {
        return Err(Errno::ENOPROTOOPT);
    }
    if !matches!(level, libc::SOL_SOCKET | libc::IPPROTO_TCP) || name == libc::SO_BINDTODEVICE {
        // Groups, interfaces and routes: where it leads.
        network::check_own(task.kernel(), socket)?;
    }
    let mut bytes = vec![0; len];
    if let Err(stopped) = task.memory().read(value, &mut bytes) {
        // Most options look at four bytes of however many there are said to be.
        if stopped.copied < 4 {
            return Err(Errno::EFAULT);
        }
        bytes.truncate(stopped.copied);
    }
    if let Some(names) = network::private(task.kernel())
        && (level, name) == (libc::SOL_SOCKET, libc::SO_PASSCRED)
        && socket.is_unix()
        && socket.is_guests()
    {
        return names.set_pass_credentials(task, &file, socket, &bytes).map(|()| 0);
    }
    host::setsockopt(file.as_fd(), level, name, &bytes)?;
    if (level, name) == (libc::SOL_SOCKET, libc::SO_RCVLOWAT) {
        let lowest = bytes.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
        socket.set_waits_for_more(lowest != 1);
    }
    Ok(0)
}

/// A classic filter: the structure holds the address of its instructions.
fn attach_filter(task: &Task, file: &File, name: i32, value: GuestAddr, len: usize) -> SysResult {
    const INSTRUCTION: usize = size_of::<libc::sock_filter>();
    const BPF_MAXINSNS: usize = 4096;
    if len != size_of::<libc::sock_fprog>() {
        return Err(Errno::EINVAL);
    }
    let [count, instructions] = task.memory().read_object::<[u64; 2]>(value)?;
    let count = usize::from(count as u16); // the rest is padding
    if count > BPF_MAXINSNS {
        return Err(Errno::EINVAL);
    }
    let mut program = vec![0; count * INSTRUCTION];
    task.memory().read(GuestAddr::new(instructions), &mut program)?;
    host::attach_filter(file.as_fd(), name, &program).map(|()| 0)
}

pub(in super::super) fn getsockopt(
    task: &mut Task,
    fd: Fd,
    SocketLevel(level): SocketLevel,
    SocketOption(name): SocketOption,
    value: GuestAddr,
    OutLength(len_addr): OutLength,
) -> SysResult {
    let file = task.file(fd.0)?;
    let socket = file.as_socket()?;
    let asks_for_peer = (level, name) == (libc::SOL_SOCKET, libc::SO_PEERCRED);
    if !is_in(plain(level), name) && !is_in(readable(level), name) && !asks_for_peer {
        return Err(Errno::ENOPROTOOPT);
    }
    let len: i32 = task.memory().read_object(len_addr)?;
    let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?.min(MOST);
    let mut buffer = OptionBuffer::new(len);
    host::getsockopt(file.as_fd(), level, name, &mut buffer)?;
    let mut bytes = buffer.as_bytes().to_vec();
    if asks_for_peer && socket.is_unix() {
        peer::translate_pid(&mut bytes, || peer::connected_process(task.kernel(), &file, socket));
    }
    task.memory().write(value, &bytes)?;
    task.memory().write_object(len_addr, &buffer.full_len()).map(|()| 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_hold_addresses_or_descriptors_are_not_passed_on() {
        const SO_ZEROCOPY: i32 = 60;
        const SO_PEERPIDFD: i32 = 77;
        const TCP_ZEROCOPY_RECEIVE: i32 = 35;
        for (level, name) in [
            (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER),
            (libc::SOL_SOCKET, libc::SO_ATTACH_BPF),
            (libc::SOL_SOCKET, SO_ZEROCOPY),
            (libc::SOL_SOCKET, SO_PEERPIDFD),
            (libc::IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE),
            (libc::IPPROTO_TCP, libc::TCP_ULP),
            (libc::IPPROTO_IP, 64),
            (libc::IPPROTO_IPV6, 32),
            (libc::IPPROTO_IPV6, 64),
            (libc::SOL_PACKET, libc::PACKET_RX_RING),
        ] {
            for names in [plain(level), settable(level), readable(level)] {
                assert!(!is_in(names, name), "{level} {name}");
            }
        }
        for name in [libc::SO_REUSEADDR, libc::SO_LINGER, libc::SO_RCVTIMEO, libc::SO_PASSCRED] {
            assert!(is_in(plain(libc::SOL_SOCKET), name), "{name}");
        }
        assert!(is_in(readable(libc::SOL_SOCKET), libc::SO_ERROR));
    }
}
