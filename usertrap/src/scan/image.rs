//! What a scan needs of an ELF file: its code, and where functions and branch targets are.

use object::elf::{FileHeader64, PF_X, PT_LOAD, R_X86_64_RELATIVE, SHF_EXECINSTR, SHT_PROGBITS};
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader, SectionHeader};
use object::{LittleEndian, Object, ObjectSymbol, SymbolKind};

use super::ScanError;
use super::functions::{self, Function};
use crate::addr::GuestAddr;

/// Executable bytes of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Code<'a> {
    pub addr: GuestAddr,
    pub file_offset: u64,
    pub bytes: &'a [u8],
}

impl<'a> Code<'a> {
    /// The bytes at an address, up to `len` of them.
    pub fn at(&self, addr: GuestAddr, len: usize) -> Option<&'a [u8]> {
        let from = usize::try_from(self.addr.distance_to(addr)).ok()?;
        let bytes = self.bytes.get(from..)?;
        Some(&bytes[..bytes.len().min(len)])
    }
}

/// A parsed file.
pub(super) struct Image<'a> {
    /// Ascending, not overlapping, all together no longer than the file.
    pub code: Vec<Code<'a>>,
    /// Ascending by start.
    pub functions: Vec<Function<'a>>,
    /// Addresses that symbols and relocations name; neither sorted nor all of them in code.
    pub named: Vec<GuestAddr>,
}

impl<'a> Image<'a> {
    pub fn parse(data: &'a [u8]) -> Result<Self, ScanError> {
        let malformed = ScanError::malformed;
        let file = ElfFile64::<LittleEndian>::parse(data).map_err(malformed)?;
        let header = file.elf_header();
        if header.e_machine(LittleEndian) != object::elf::EM_X86_64 {
            return Err(ScanError::NotX86_64);
        }
        let code = code_of(data, header)?;
        let in_code = |at: GuestAddr| code.iter().any(|c| c.at(at, 1).is_some_and(|b| !b.is_empty()));
        let mut functions = functions::from_eh_frame(data, header);
        let mut named: Vec<GuestAddr> = functions.iter().map(|f| f.start).collect();
        for symbol in file.symbols().chain(file.dynamic_symbols()).filter(|s| !s.is_undefined()) {
            let start = GuestAddr::new(symbol.address());
            if in_code(start) {
                named.push(start);
                if symbol.kind() == SymbolKind::Text {
                    functions.push(Function::from_symbol(start, symbol.size(), symbol.name().ok()));
                }
            }
        }
        named.extend(relocated_pointers(&file));
        functions::settle(&mut functions);
        Ok(Self { code, functions, named })
    }

    /// The function around an address.
    pub fn function_of(&self, addr: GuestAddr) -> Option<&Function<'a>> {
        let i = self.functions.partition_point(|f| f.start <= addr).checked_sub(1)?;
        let function = &self.functions[i];
        function.end.is_none_or(|end| addr < end).then_some(function)
    }
}

/// Executable sections, or executable segments when there are none.
fn code_of<'a>(data: &'a [u8], header: &FileHeader64<LittleEndian>) -> Result<Vec<Code<'a>>, ScanError> {
    let (e, malformed) = (LittleEndian, ScanError::malformed);
    let mut code = vec![];
    for section in header.section_headers(e, data).unwrap_or_default() {
        let executable = section.sh_flags(e).0 & SHF_EXECINSTR.0 != 0;
        if executable && section.sh_type(e) == SHT_PROGBITS {
            let (addr, file_offset) = (GuestAddr::new(section.sh_addr(e)), section.sh_offset(e));
            code.extend(section.data(e, data).map(|bytes| Code { addr, file_offset, bytes }));
        }
    }
    if code.is_empty() {
        for segment in header.program_headers(e, data).map_err(malformed)? {
            if segment.p_type(e) == PT_LOAD && segment.p_flags(e).0 & PF_X.0 != 0 {
                let (addr, file_offset) = (GuestAddr::new(segment.p_vaddr(e)), segment.p_offset(e));
                code.extend(segment.data(e, data).map(|bytes| Code { addr, file_offset, bytes }));
            }
        }
    }
    Ok(disjoint(code, data.len()))
}

/// Drops what overlaps, and what a hostile file repeats: the time of a scan is bounded by the file's length.
fn disjoint(mut code: Vec<Code<'_>>, file_len: usize) -> Vec<Code<'_>> {
    code.sort_by_key(|c| c.addr);
    let (mut behind, mut total) = (0u64, 0usize);
    code.retain(|c| {
        let end = c.addr.raw().checked_add(c.bytes.len() as u64);
        let keep = c.addr.raw() >= behind && end.is_some() && total + c.bytes.len() <= file_len;
        if keep {
            (behind, total) = (end.unwrap_or(behind), total + c.bytes.len());
        }
        keep
    });
    code
}

/// Addends of relative relocations: pointers to functions and jump targets in tables.
fn relocated_pointers(file: &ElfFile64<'_, LittleEndian>) -> Vec<GuestAddr> {
    let relative = |r: &object::read::Relocation| matches!(r.flags(), object::RelocationFlags::Elf { r_type } if r_type == R_X86_64_RELATIVE);
    let relocations = file.dynamic_relocations().into_iter().flatten();
    relocations.filter(|(_, r)| relative(r)).map(|(_, r)| GuestAddr::new(r.addend() as u64)).collect()
}
