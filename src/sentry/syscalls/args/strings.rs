//! Lists of strings: the arguments and the environment of a program that is to be executed.

use super::{Arg, CallView, Replacement, show_pointer, show_string};
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::{GuestMemory, GuestMemoryExt as _};
use crate::sentry::hook::ArgValue;
use crate::{GuestAddr, PAGE_SIZE};
use std::cell::OnceCell;
use std::ffi::CString;
use std::fmt::Write as _;

/// The most strings of one list.
const MOST_STRINGS: usize = 1 << 18;
/// The most bytes that are read before the loader's own limit applies.
const MOST_BYTES: usize = 4 << 20;
/// The longest single string.
const LONGEST_STRING: usize = 32 * PAGE_SIZE as usize;
/// How many strings a trace shows.
const SHOWN: usize = 32;

/// The arguments of a program.
pub(crate) type Arguments = Strings<false>;
/// Its environment, of which a trace shows the size.
pub(crate) type Environment = Strings<true>;

/// A null-terminated array of strings: read by whoever looks first, a hook or the handler, and never again.
#[derive(Debug, Clone)]
pub(crate) struct Strings<const COUNTED: bool> {
    array: GuestAddr,
    read: OnceCell<Result<Vec<CString>, Errno>>,
}

impl<const COUNTED: bool> Strings<COUNTED> {
    /// The strings.
    pub(crate) fn read(self, memory: &dyn GuestMemory) -> Result<Vec<CString>, Errno> {
        self.read.into_inner().unwrap_or_else(|| read_strings(memory, self.array))
    }

    fn look(&self, memory: &dyn GuestMemory) -> &Result<Vec<CString>, Errno> {
        self.read.get_or_init(|| read_strings(memory, self.array))
    }
}

fn read_strings(memory: &dyn GuestMemory, array: GuestAddr) -> Result<Vec<CString>, Errno> {
    let mut strings = Vec::new();
    let mut total = 0;
    if array == GuestAddr::NULL {
        return Ok(strings);
    }
    loop {
        let slot = array.checked_add(8 * strings.len() as u64).ok_or(Errno::EFAULT)?;
        let pointer: u64 = memory.read_object(slot)?;
        if pointer == 0 {
            return Ok(strings);
        }
        let string = memory.read_string(GuestAddr::new(pointer), LONGEST_STRING, Errno::E2BIG)?;
        total += string.as_bytes().len();
        strings.push(string);
        if strings.len() > MOST_STRINGS || total > MOST_BYTES {
            return Err(Errno::E2BIG);
        }
    }
}

impl<const COUNTED: bool> Arg for Strings<COUNTED> {
    fn decode(raw: u64, _: &dyn GuestMemory) -> Result<Self, Errno> {
        Ok(Self { array: GuestAddr::new(raw), read: OnceCell::new() })
    }

    fn show(&self, view: &CallView<'_>, out: &mut String) {
        match self.look(view.memory) {
            Ok(strings) if COUNTED => {
                show_pointer(self.array, out);
                let _ = write!(out, " /* {} vars */", strings.len());
            }
            Ok(strings) => {
                out.push('[');
                for (index, string) in strings.iter().take(SHOWN).enumerate() {
                    out.push_str(if index == 0 { "" } else { ", " });
                    let bytes = string.as_bytes();
                    show_string(bytes.get(..SHOWN).unwrap_or(bytes), bytes.len(), out);
                }
                out.push_str(if strings.len() > SHOWN { ", ...]" } else { "]" });
            }
            Err(_) => show_pointer(self.array, out),
        }
    }

    fn value_in<'a>(&'a self, view: &CallView<'a>) -> Option<ArgValue<'a>> {
        Some(match self.look(view.memory) {
            Ok(strings) => ArgValue::Strings(strings),
            Err(errno) => ArgValue::Unreadable(*errno),
        })
    }

    fn settle(&self, memory: &dyn GuestMemory) {
        let _ = self.look(memory);
    }

    fn replaced(by: Replacement) -> Option<Self> {
        let Replacement::Strings(strings) = by else { return None };
        Some(Self { array: GuestAddr::NULL, read: OnceCell::from(Ok(strings)) })
    }
}
