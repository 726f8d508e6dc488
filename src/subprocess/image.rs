//! The stub's text and read-only data: one sealed file per platform.

use std::fs::File;

use seccompiler::sock_filter;
use systrap_stub::code;
use systrap_stub::layout::{self, rodata};
use systrap_stub::sysmsg::{SIGSTACK, SIGSTACK_LEN};

use crate::Error;
use crate::seccomp::{FilterKind, assemble, rows};
use crate::shared::sealed_file;

/// The signals that a stub thread handles; all others stay blocked for ever.
pub(crate) const HANDLED_SIGNALS: [i32; 7] = [
    libc::SIGSYS,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGTRAP,
    libc::SIGILL,
    code::sighandler::INTERRUPT_SIGNAL,
];

/// Builds the file for a stub at `base`.
pub(crate) fn build(base: u64) -> Result<File, Error> {
    if !code::entries_lie_in_text() {
        return Err(Error::StubCodeMissing);
    }
    let mut image = vec![0_u8; (layout::RODATA + layout::RODATA_LEN) as usize];
    let text = stub_text();
    if text.len() as u64 > layout::TEXT_LEN {
        return Err(Error::StubCodeMissing);
    }
    image[..text.len()].copy_from_slice(text);
    let word = code::slots_word_offset();
    image[word..word + 8].copy_from_slice(&(base + layout::SYSMSG).to_le_bytes());

    let mut data = RoData { base, bytes: &mut image[layout::RODATA as usize..], used: rodata::PROGRAMS };
    let handled = HANDLED_SIGNALS.iter().fold(0_u64, |set, signal| set | 1 << (signal - 1));
    data.put_u64(rodata::THREAD_SIGMASK, !handled);
    let rows = rows(base);
    for (kind, place) in [(FilterKind::Base, rodata::BASE_FPROG), (FilterKind::Guest, rodata::GUEST_FPROG)] {
        let program = assemble(base, &rows, kind).map_err(|_| Error::StubCodeMissing)?;
        data.put_program(place, &program);
    }
    for slot in 0..layout::MAX_SLOTS {
        let place = rodata::STACKS + slot * size_of::<rodata::SigStack>() as u64;
        data.put_u64(place, base + layout::SYSMSG + slot * layout::SLOT_SIZE + SIGSTACK);
        data.put_u64(place + 8, 0);
        data.put_u64(place + 16, SIGSTACK_LEN);
    }
    sealed_file("systrap-stub", &image)
}

struct RoData<'a> {
    base: u64,
    bytes: &'a mut [u8],
    used: u64,
}

impl RoData<'_> {
    fn put(&mut self, place: u64, value: &[u8]) {
        let place = place as usize;
        self.bytes[place..place + value.len()].copy_from_slice(value);
    }

    fn put_u64(&mut self, place: u64, value: u64) {
        self.put(place, &value.to_le_bytes());
    }

    /// Appends a program and writes its `struct sock_fprog` at `place`.
    fn put_program(&mut self, place: u64, program: &[sock_filter]) {
        assert!(
            self.used + (program.len() as u64) * 8 <= rodata::PROGRAMS + rodata::PROGRAMS_LEN,
            "the filters outgrew their room in the stub's read-only data"
        );
        self.put_u64(place, program.len() as u64);
        self.put_u64(place + 8, self.base + layout::RODATA + self.used);
        for instruction in program {
            let mut raw = [0_u8; 8];
            raw[..2].copy_from_slice(&instruction.code.to_le_bytes());
            raw[2] = instruction.jt;
            raw[3] = instruction.jf;
            raw[4..].copy_from_slice(&instruction.k.to_le_bytes());
            self.put(self.used, &raw);
            self.used += 8;
        }
    }
}

/// The code of the stub, as linked into this program.
#[allow(unsafe_code)]
fn stub_text() -> &'static [u8] {
    let (start, len) = code::text();
    // SAFETY: the linker's section bounds enclose initialised, never-written bytes of this program.
    unsafe { std::slice::from_raw_parts(start, len) }
}
