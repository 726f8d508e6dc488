//! Reading and checking the headers of an ELF file.

use super::LoadError;
use crate::PAGE_SIZE;
use crate::sentry::abi::PATH_MAX;
use crate::sentry::errno::Errno;
use crate::sentry::file::{File, StatView};
use crate::sentry::host;
use object::elf::{self, FileHeader64, ProgramHeader64};
use object::{LittleEndian as Le, pod};
use std::ffi::CString;
use std::os::fd::AsFd;
use std::sync::Arc;

/// A loadable segment, checked: its file part lies in the file, its memory part below the end of user space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) vaddr: u64,
    pub(super) file_len: u64,
    pub(super) memory_len: u64,
    /// `PROT_*` bits.
    pub(super) prot: i32,
}

/// The headers of an ELF file that this loader can map.
#[derive(Debug)]
pub(super) struct ElfFile {
    pub(super) file: Arc<File>,
    pub(super) path: String,
    /// Whether it may be loaded anywhere (ET_DYN).
    pub(super) relocatable: bool,
    pub(super) entry: u64,
    /// In ascending order, at least one.
    pub(super) segments: Vec<Segment>,
    /// The largest alignment that a segment asks for, at least a page.
    pub(super) align: u64,
    /// The link-time address of the program headers, if they are loaded at all.
    pub(super) phdr_vaddr: Option<u64>,
    pub(super) phnum: u64,
    pub(super) interpreter: Option<CString>,
    /// Whether the stack has to be executable (PT_GNU_STACK).
    pub(super) executable_stack: bool,
}

const HEADER_LEN: usize = size_of::<FileHeader64<Le>>();
const PHDR_LEN: usize = size_of::<ProgramHeader64<Le>>();
/// The kernel's limit on the size of the program headers.
const PHDRS_MAX_LEN: usize = 65536;
/// No segment may end above the 47-bit user space.
const VADDR_LIMIT: u64 = 1 << 47;
/// Larger alignments are not honoured (the kernel ignores those that are no power of two, too).
const LARGEST_ALIGN: u64 = 1 << 30;

impl ElfFile {
    /// Reads the headers and checks them.
    pub(super) fn parse(file: Arc<File>, path: &str) -> Result<Self, LoadError> {
        let bad = |reason| LoadError::BadFormat { path: path.to_owned(), reason };
        let io = |errno| LoadError::Open { path: path.to_owned(), errno };
        let mut stat = [0; 144];
        host::fstat(file.as_fd(), &mut stat).map_err(io)?;
        let file_len = StatView(&stat).size();

        let mut bytes = AlignedBytes::new(HEADER_LEN);
        let len = read_fully(&file, bytes.as_mut(), 0).map_err(io)?;
        if len < 4 || bytes.as_ref()[..4] != elf::ELFMAG {
            return Err(bad("not an ELF file or a script"));
        }
        if len > 4 && bytes.as_ref()[4] == elf::ELFCLASS32.0 {
            return Err(bad("32-bit programs are not supported"));
        }
        if len < HEADER_LEN {
            return Err(bad("truncated ELF header"));
        }
        let (header, _) =
            pod::from_bytes::<FileHeader64<Le>>(bytes.as_ref()).map_err(|()| bad("truncated ELF header"))?;
        let le = Le;
        if header.e_ident.class != elf::ELFCLASS64 || header.e_ident.data != elf::ELFDATA2LSB {
            return Err(bad("not a 64-bit little-endian ELF file"));
        }
        if header.e_machine.get(le) != elf::EM_X86_64 {
            return Err(bad("not a program for x86-64"));
        }
        let relocatable = match header.e_type.get(le) {
            elf::ET_EXEC => false,
            elf::ET_DYN => true,
            _ => return Err(bad("not an executable ELF file")),
        };
        let (phoff, phnum) = (header.e_phoff.get(le), usize::from(header.e_phnum.get(le)));
        if usize::from(header.e_phentsize.get(le)) != PHDR_LEN
            || phnum == 0
            || phnum * PHDR_LEN > PHDRS_MAX_LEN
        {
            return Err(bad("bad program header table"));
        }
        let entry = header.e_entry.get(le);

        let mut bytes = AlignedBytes::new(phnum * PHDR_LEN);
        let in_file = i64::try_from(phoff)
            .is_ok_and(|at| read_fully(&file, bytes.as_mut(), at).is_ok_and(|len| len == phnum * PHDR_LEN));
        if !in_file {
            return Err(bad("truncated program header table"));
        }
        let (headers, _) = pod::slice_from_bytes::<ProgramHeader64<Le>>(bytes.as_ref(), phnum)
            .map_err(|()| bad("bad program header table"))?;

        let mut parsed = Self {
            file,
            path: path.to_owned(),
            relocatable,
            entry,
            segments: Vec::new(),
            align: PAGE_SIZE,
            phdr_vaddr: None,
            phnum: phnum as u64,
            interpreter: None,
            executable_stack: true, // the default of programs without PT_GNU_STACK
        };
        let mut declared_phdr = None;
        for header in headers {
            match header.p_type.get(le) {
                elf::PT_LOAD => {
                    let align = header.p_align.get(le);
                    if align.is_power_of_two() && align <= LARGEST_ALIGN {
                        parsed.align = parsed.align.max(align);
                    }
                    if let Some(segment) = check_segment(header, file_len).map_err(bad)? {
                        if parsed
                            .segments
                            .last()
                            .is_some_and(|last| segment.vaddr < last.vaddr + last.memory_len)
                        {
                            return Err(bad("overlapping segments"));
                        }
                        parsed.segments.push(segment);
                    }
                }
                elf::PT_INTERP if parsed.interpreter.is_none() => {
                    parsed.interpreter = Some(read_interpreter(&parsed.file, header).map_err(bad)?);
                }
                elf::PT_PHDR => declared_phdr = Some(header.p_vaddr.get(le)),
                elf::PT_GNU_STACK => parsed.executable_stack = header.p_flags.get(le).0 & elf::PF_X.0 != 0,
                _ => {}
            }
        }
        if parsed.segments.is_empty() {
            return Err(bad("nothing to load"));
        }
        let holds_headers =
            |segment: &&Segment| segment.offset <= phoff && phoff - segment.offset < segment.file_len;
        parsed.phdr_vaddr = declared_phdr.or_else(|| {
            parsed.segments.iter().find(holds_headers).map(|segment| segment.vaddr + (phoff - segment.offset))
        });
        Ok(parsed)
    }

    /// The page-aligned range of link-time addresses that the segments span.
    pub(super) fn span(&self) -> (u64, u64) {
        let start = self.segments.first().map_or(0, |segment| segment.vaddr);
        let end = self.segments.last().map_or(0, |segment| segment.vaddr + segment.memory_len);
        (start / PAGE_SIZE * PAGE_SIZE, end.next_multiple_of(PAGE_SIZE))
    }
}

/// Checks a PT_LOAD header; `None` for an empty one.
fn check_segment(header: &ProgramHeader64<Le>, file_len: u64) -> Result<Option<Segment>, &'static str> {
    let le = Le;
    let flags = header.p_flags.get(le).0;
    let prot =
        [(elf::PF_R.0, libc::PROT_READ), (elf::PF_W.0, libc::PROT_WRITE), (elf::PF_X.0, libc::PROT_EXEC)]
            .into_iter()
            .filter(|(flag, _)| flags & flag != 0)
            .fold(0, |prot, (_, bit)| prot | bit);
    let segment = Segment {
        offset: header.p_offset.get(le),
        vaddr: header.p_vaddr.get(le),
        file_len: header.p_filesz.get(le),
        memory_len: header.p_memsz.get(le),
        prot,
    };
    if segment.file_len > segment.memory_len {
        return Err("segment larger in the file than in memory");
    }
    if segment.memory_len == 0 {
        return Ok(None);
    }
    if segment.vaddr.checked_add(segment.memory_len).is_none_or(|end| end > VADDR_LIMIT) {
        return Err("segment outside the user address space");
    }
    if segment.file_len != 0 {
        if segment.vaddr % PAGE_SIZE != segment.offset % PAGE_SIZE {
            return Err("misaligned segment");
        }
        // The kernel would map it and let the program die of SIGBUS; said here it is understood.
        if segment.offset.checked_add(segment.file_len).is_none_or(|end| end > file_len) {
            return Err("truncated: a segment reaches past the end of the file");
        }
    }
    Ok(Some(segment))
}

/// Reads the path in a PT_INTERP segment.
fn read_interpreter(file: &File, header: &ProgramHeader64<Le>) -> Result<CString, &'static str> {
    let le = Le;
    let len = usize::try_from(header.p_filesz.get(le)).unwrap_or(usize::MAX);
    let offset = i64::try_from(header.p_offset.get(le)).map_err(|_| "bad interpreter name")?;
    if !(2..=PATH_MAX).contains(&len) {
        return Err("bad interpreter name");
    }
    let mut name = vec![0; len];
    match read_fully(file, &mut name, offset) {
        Ok(read) if read == len && name.last() == Some(&0) => {}
        _ => return Err("bad interpreter name"),
    }
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(0);
    name.truncate(end);
    CString::new(name).map_err(|_| "bad interpreter name")
}

/// Reads until the buffer is full or the file ends.
fn read_fully(file: &File, buf: &mut [u8], offset: i64) -> Result<usize, Errno> {
    let mut done = 0;
    while done < buf.len() {
        let at = offset.checked_add(done as i64).ok_or(Errno::EINVAL)?;
        match host::pread64(file.as_fd(), &mut buf[done..], at)? {
            0 => break,
            len => done += len,
        }
    }
    Ok(done)
}

/// Bytes aligned for the header structures.
struct AlignedBytes(Vec<u64>);

impl AlignedBytes {
    fn new(len_bytes: usize) -> Self {
        Self(vec![0; len_bytes.div_ceil(8)])
    }

    fn as_mut(&mut self) -> &mut [u8] {
        zerocopy::IntoBytes::as_mut_bytes(self.0.as_mut_slice())
    }

    fn as_ref(&self) -> &[u8] {
        zerocopy::IntoBytes::as_bytes(self.0.as_slice())
    }
}
