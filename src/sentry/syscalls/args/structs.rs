//! Structures that a trace shows field by field.

use super::{Arg, CallView, Mode, OpenFlags, show_pointer};
use crate::GuestAddr;
use crate::sentry::abi::Timespec;
use crate::sentry::errno::Errno;
use crate::sentry::file::StatView;
use crate::sentry::guest_memory::{GuestMemory, GuestMemoryExt as _};
use crate::sentry::hook::{ArgValue, OpenHow};
use std::cell::OnceCell;
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
    /// The length of something that the call writes, which says before how much room there is.
    OutLength, output: true, |addr, view, out| {
        match (view.returned(), view.memory.read_object::<i32>(addr)) {
            (Some(_), Ok(len)) => {
                let _ = write!(out, "[{len}]");
            }
            _ => show_pointer(addr, out),
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

/// A `struct open_how`; the next argument is its size. Read by whoever looks first, a hook or the handler, and never again.
#[derive(Debug, Clone)]
pub(crate) struct InOpenHow {
    addr: GuestAddr,
    size: u64,
    read: OnceCell<Result<OpenHow, Errno>>,
}

impl InOpenHow {
    pub(crate) fn read(&self, memory: &dyn GuestMemory) -> Result<OpenHow, Errno> {
        *self.read.get_or_init(|| {
            const SIZE: u64 = 24;
            match self.size {
                0..SIZE => Err(Errno::EINVAL),
                SIZE => {
                    let [flags, mode, resolve] = memory.read_object::<[u64; 3]>(self.addr)?;
                    Ok(OpenHow { flags, mode, resolve })
                }
                _ => Err(Errno::E2BIG),
            }
        })
    }
}

impl Arg for InOpenHow {
    const USES_NEXT: bool = true;

    fn decode(raw: u64, _: &dyn GuestMemory) -> Result<Self, Errno> {
        Ok(Self { addr: GuestAddr::new(raw), size: 0, read: OnceCell::new() })
    }

    fn decode_at(args: &[u64; 6], index: usize, memory: &dyn GuestMemory) -> Result<Self, Errno> {
        let [addr, size] = super::pair(args, index);
        Ok(Self { size, ..Self::decode(addr, memory)? })
    }

    fn show(&self, view: &CallView<'_>, out: &mut String) {
        let Ok(how) = self.read(view.memory) else { return show_pointer(self.addr, out) };
        out.push_str("{flags=");
        OpenFlags(how.flags as i32).show(view, out);
        if how.mode != 0 {
            out.push_str(", mode=");
            Mode(how.mode as u32).show(view, out);
        }
        let _ = write!(out, ", resolve={:#x}}}", how.resolve);
    }

    fn value_in<'a>(&'a self, view: &CallView<'a>) -> Option<ArgValue<'a>> {
        Some(self.read(view.memory).map_or_else(ArgValue::Unreadable, ArgValue::OpenHow))
    }

    fn settle(&self, memory: &dyn GuestMemory) {
        let _ = self.read(memory);
    }
}
