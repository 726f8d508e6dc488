//! How arguments look in a trace.

use super::*;
use crate::sentry::guest_memory::fake::FakeMemory;

fn shown<T: Arg>(raw: u64) -> String {
    shown_in::<T>(&FakeMemory::new(0x1000, 4096), &[raw, 0, 0, 0, 0, 0], None)
}

fn shown_in<T: Arg>(memory: &FakeMemory, args: &[u64; 6], result: Option<Result<i64, Errno>>) -> String {
    let mut out = String::new();
    match T::decode_at(args, 0, memory) {
        Ok(arg) => arg.show(&CallView { args, index: 0, memory, result, returned_address: None }, &mut out),
        Err(errno) => out.push_str(errno.name().unwrap_or_default()),
    }
    out
}

#[test]
fn plain_arguments() {
    let lines = [
        shown::<i32>(u64::MAX),
        shown::<GuestAddr>(0),
        shown::<GuestAddr>(0x7000),
        shown::<Fd>(0xffff_ffff_0000_0003),
        shown::<DirFd>(0xffff_ff9c),
        shown::<Mode>(0o644),
        shown::<Mode>(0),
        shown::<Signo>(11),
        shown::<OpenFlags>((libc::O_RDWR | libc::O_CREAT | libc::O_CLOEXEC) as u64),
        shown::<OpenFlags>(libc::O_TMPFILE as u64),
        shown::<Protections>(3),
        shown::<Protections>(0),
        shown::<MapFlags>(0x22),
        shown::<AccessMode>(0),
        shown::<AtFlags>(0x1100),
        shown::<AtFlags>(0x8000_0000),
        shown::<Whence>(2),
        shown::<Whence>(99),
        shown::<IoctlRequest>(0x5413),
    ];
    insta::assert_snapshot!(lines.join("\n"), @r"
    -1
    NULL
    0x7000
    3
    AT_FDCWD
    0644
    000
    SIGSEGV
    O_RDWR|O_CREAT|O_CLOEXEC
    O_RDONLY|O_TMPFILE
    PROT_READ|PROT_WRITE
    PROT_NONE
    MAP_PRIVATE|MAP_ANONYMOUS
    F_OK
    AT_SYMLINK_NOFOLLOW|AT_EMPTY_PATH
    0x80000000
    SEEK_END
    0x63
    TIOCGWINSZ
    ");
}

#[test]
fn arguments_in_memory() {
    let memory = FakeMemory::new(0x1000, 4096);
    memory.write(GuestAddr::new(0x1000), b"/etc/\"x\"\n\x01\x017\0").unwrap();
    memory.write(GuestAddr::new(0x1100), &[b'a'; 40]).unwrap();
    memory.write_object(GuestAddr::new(0x1200), &[5_i64, 250]).unwrap();
    memory.write_object(GuestAddr::new(0x1300), &[0x1000_u64, 4, 0x1100, 3]).unwrap();
    let at = |addr: u64, next: u64| [addr, next, 0, 0, 0, 0];
    let lines = [
        shown_in::<Path>(&memory, &at(0x1000, 0), None),
        shown_in::<Path>(&memory, &at(0x10, 0), None),
        shown_in::<OptionalPath>(&memory, &at(0, 0), None),
        shown_in::<InBytes>(&memory, &at(0x1100, 5), None),
        shown_in::<InBytes>(&memory, &at(0x1100, 40), None),
        shown_in::<InBytes>(&memory, &at(0x10, u64::MAX), None),
        shown_in::<OutBytes>(&memory, &at(0x1100, 40), Some(Ok(2))),
        shown_in::<OutBytes>(&memory, &at(0x1100, 40), Some(Err(Errno::EIO))),
        shown_in::<InTimespec>(&memory, &at(0x1200, 0), None),
        shown_in::<OutTimespec>(&memory, &at(0x1200, 0), Some(Err(Errno::EINVAL))),
        shown_in::<InIovecs>(&memory, &at(0x1300, 2), None),
        shown_in::<OutIovecs>(&memory, &at(0x1300, 2), Some(Ok(5))),
    ];
    insta::assert_snapshot!(lines.join("\n"), @r#"
    "/etc/\"x\"\n\1\0017"
    EFAULT
    NULL
    "aaaaa"
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"...
    0x10
    "aa"
    0x1100
    {tv_sec=5, tv_nsec=250}
    0x1200
    [{iov_base="/etc", iov_len=4}, {iov_base="aaa", iov_len=3}]
    [{iov_base="/etc", iov_len=4}, {iov_base="a", iov_len=3}]
    "#);
}
