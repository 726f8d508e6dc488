//! Structures that a trace shows field by field.

use super::{Arg, CallView, show_pointer};
use crate::GuestAddr;
use crate::sentry::abi::Timespec;
use crate::sentry::errno::Errno;
use crate::sentry::file::StatView;
use crate::sentry::guest_memory::{GuestMemory, GuestMemoryExt as _};
use crate::sentry::hook::ArgValue;
use std::fmt::Write as _;

fn show_timespec(memory: &dyn GuestMemory, addr: GuestAddr, out: &mut String) {
    match memory.read_optional::<Timespec>(addr) {
        Ok(Some(time)) => {
            let _ = write!(out, "{{tv_sec={}, tv_nsec={}}}", time.sec, time.nsec);
        }
        _ => show_pointer(addr, out),
    }
}

macro_rules! pointer_arg {
    ($(#[$meta:meta])* $name:ident, output: $output:literal, |$this:ident, $view:ident, $out:ident| $show:block) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy)]
        pub(crate) struct $name(pub(crate) GuestAddr);

        impl Arg for $name {
            const OUTPUT: bool = $output;

            fn decode(raw: u64, _: &dyn GuestMemory) -> Result<Self, Errno> {
                Ok(Self(GuestAddr::new(raw)))
            }

            fn show(&self, $view: &CallView<'_>, $out: &mut String) {
                let $this = self.0;
                $show
            }

            fn value(&self) -> Option<ArgValue<'_>> {
                Some(ArgValue::Address(self.0))
            }
        }
    };
}

pointer_arg! {
    /// A `struct timespec` that the call reads.
    InTimespec, output: false, |addr, view, out| { show_timespec(view.memory, addr, out); }
}

pointer_arg! {
    /// A `struct timespec` that the call writes.
    OutTimespec, output: true, |addr, view, out| {
        match view.returned() {
            Some(_) => show_timespec(view.memory, addr, out),
            None => show_pointer(addr, out),
        }
    }
}

pointer_arg! {
    /// Two descriptors that the call writes.
    OutFdPair, output: true, |addr, view, out| {
        match (view.returned(), view.memory.read_object::<[i32; 2]>(addr)) {
            (Some(_), Ok([first, second])) => {
                let _ = write!(out, "[{first}, {second}]");
            }
            _ => show_pointer(addr, out),
        }
    }
}

pointer_arg! {
    /// A `struct stat` that the call writes.
    OutStat, output: true, |addr, view, out| {
        match (view.returned(), view.memory.read_object::<[u8; 144]>(addr)) {
            (Some(_), Ok(bytes)) => {
                let stat = StatView(&bytes);
                let kind = match stat.mode() & libc::S_IFMT {
                    libc::S_IFREG => "S_IFREG",
                    libc::S_IFDIR => "S_IFDIR",
                    libc::S_IFLNK => "S_IFLNK",
                    libc::S_IFCHR => "S_IFCHR",
                    libc::S_IFBLK => "S_IFBLK",
                    libc::S_IFIFO => "S_IFIFO",
                    libc::S_IFSOCK => "S_IFSOCK",
                    _ => "0",
                };
                let _ = write!(out, "{{st_mode={kind}|0{:o}, st_size={}, ...}}", stat.mode() & 0o7777, stat.size());
            }
            _ => show_pointer(addr, out),
        }
    }
}
