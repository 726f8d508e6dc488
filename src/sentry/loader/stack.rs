//! The stack that a program finds when it starts: strings, auxiliary vector, pointers (fs/binfmt_elf.c).

use super::LoadError;
use crate::sentry::host;
use crate::{GuestAddr, PAGE_SIZE};
use std::ffi::{CStr, CString};

/// The longest single argument (`MAX_ARG_STRLEN`).
const LONGEST_STRING: usize = 32 * PAGE_SIZE as usize;
/// The most bytes of arguments and environment, pointers included: a quarter of an 8 MiB stack, as Linux has it.
const LARGEST_TOTAL: usize = 2 << 20;
const AT_MINSIGSTKSZ: u64 = 51;
const AT_HWCAP2: u64 = 26;

/// Refuses arguments that `execve` refuses with `E2BIG`.
pub(super) fn check_size(argv: &[CString], envp: &[CString]) -> Result<(), LoadError> {
    let mut total = 0;
    for string in argv.iter().chain(envp) {
        let len = string.as_bytes_with_nul().len();
        total += len + 8;
        if len > LONGEST_STRING || total > LARGEST_TOTAL {
            return Err(LoadError::ArgumentsTooLong);
        }
    }
    Ok(())
}

/// The values of the auxiliary vector that depend on the program.
pub(super) struct Auxiliary {
    pub(super) vdso: u64,
    pub(super) phdr: u64,
    pub(super) phnum: u64,
    pub(super) base: u64,
    pub(super) entry: u64,
    pub(super) owner: Owner,
}

/// Whom a program runs as, for its auxiliary vector.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) euid: u32,
    pub(crate) gid: u32,
    pub(crate) egid: u32,
    /// `AT_SECURE`: the C library must not trust the environment.
    pub(crate) secure: bool,
}

/// The bytes between the initial stack pointer and the top of the stack.
pub(super) struct InitialStack {
    pub(super) pointer: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) arguments: (GuestAddr, u64),
    pub(super) environment: (GuestAddr, u64),
    pub(super) auxv: Vec<u8>,
}

/// Strings as they will lie in memory, one after the other in ascending order.
struct Strings {
    base: u64,
    bytes: Vec<u8>,
}

impl Strings {
    fn push(&mut self, string: &[u8]) -> u64 {
        let addr = self.base + self.bytes.len() as u64;
        self.bytes.extend_from_slice(string);
        addr
    }

    fn push_all(&mut self, strings: &[CString]) -> (Vec<u64>, (GuestAddr, u64)) {
        let start = self.base + self.bytes.len() as u64;
        let pointers: Vec<u64> = strings.iter().map(|string| self.push(string.as_bytes_with_nul())).collect();
        (pointers, (GuestAddr::new(start), self.base + self.bytes.len() as u64 - start))
    }
}

impl InitialStack {
    /// Lays out the stack that ends at `top`.
    pub(super) fn build(
        top: u64,
        argv: &[CString],
        envp: &[CString],
        execfn: &CStr,
        auxiliary: &Auxiliary,
    ) -> Self {
        const PLATFORM: &[u8] = b"x86_64\0";
        const RANDOM_LEN: usize = 16;
        // A program is never started without argv[0] (CVE-2021-4034; the kernel does the same since 5.18).
        let substitute = [CString::default()];
        let argv = if argv.is_empty() { &substitute[..] } else { argv };

        let strings_len =
            argv.iter().chain(envp).map(|string| string.as_bytes_with_nul().len()).sum::<usize>()
                + execfn.to_bytes_with_nul().len()
                + PLATFORM.len()
                + RANDOM_LEN;
        // The last eight bytes of the stack stay zero, as in the kernel.
        let base = (top - 8 - strings_len as u64) & !15;
        let mut strings = Strings { base, bytes: Vec::with_capacity(strings_len + 32) };
        let mut random = [0; RANDOM_LEN];
        let _ = host::getrandom(&mut random[..], 0);
        let random_addr = strings.push(&random);
        let platform = strings.push(PLATFORM);
        let (argv, arguments) = strings.push_all(argv);
        let (envp, environment) = strings.push_all(envp);
        let execfn = strings.push(execfn.to_bytes_with_nul());
        strings.bytes.resize((top - base) as usize, 0);

        let owner = auxiliary.owner;
        let auxv: Vec<u64> = [
            (libc::AT_SYSINFO_EHDR, auxiliary.vdso),
            (AT_MINSIGSTKSZ, host::auxiliary_value(AT_MINSIGSTKSZ)),
            (libc::AT_HWCAP, host::auxiliary_value(libc::AT_HWCAP)),
            (libc::AT_PAGESZ, PAGE_SIZE),
            (libc::AT_CLKTCK, host::ticks_per_second()),
            (libc::AT_PHDR, auxiliary.phdr),
            (libc::AT_PHENT, 56),
            (libc::AT_PHNUM, auxiliary.phnum),
            (libc::AT_BASE, auxiliary.base),
            (libc::AT_FLAGS, 0),
            (libc::AT_ENTRY, auxiliary.entry),
            (libc::AT_UID, owner.uid.into()),
            (libc::AT_EUID, owner.euid.into()),
            (libc::AT_GID, owner.gid.into()),
            (libc::AT_EGID, owner.egid.into()),
            (libc::AT_SECURE, owner.secure.into()),
            (libc::AT_RANDOM, random_addr),
            (AT_HWCAP2, host::auxiliary_value(AT_HWCAP2)),
            (libc::AT_EXECFN, execfn),
            (libc::AT_PLATFORM, platform),
        ]
        .into_iter()
        .filter(|(kind, value)| *value != 0 || ![libc::AT_SYSINFO_EHDR, AT_MINSIGSTKSZ].contains(kind))
        .chain([(libc::AT_NULL, 0)])
        .flat_map(|(kind, value)| [kind, value])
        .collect();

        let words: Vec<u64> = [argv.len() as u64]
            .into_iter()
            .chain(argv)
            .chain([0])
            .chain(envp)
            .chain([0])
            .chain(auxv.iter().copied())
            .collect();
        // The ABI wants the stack pointer on a 16-byte boundary at entry.
        let pointer = (base - 8 * words.len() as u64) & !15;
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize((base - pointer) as usize, 0);
        bytes.extend_from_slice(&strings.bytes);
        let auxv = auxv.iter().flat_map(|word| word.to_le_bytes()).collect();
        Self { pointer, bytes, arguments, environment, auxv }
    }
}
