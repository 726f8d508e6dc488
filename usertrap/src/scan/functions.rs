//! Function bounds: `.eh_frame` where there is one, symbols elsewhere.

use std::collections::HashMap;

use gimli::{BaseAddresses, CieOrFde, EhFrame, EhFrameHdr, EndianSlice, Pointer, UnwindSection};
use object::LittleEndian;
use object::elf::{FileHeader64, PT_GNU_EH_FRAME, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};

use crate::addr::GuestAddr;
use crate::window::KnownFunction;

/// A function, by whoever tells of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function<'a> {
    pub start: GuestAddr,
    pub end: Option<GuestAddr>,
    pub name: Option<&'a str>,
    from_eh_frame: bool,
}

impl<'a> Function<'a> {
    pub fn from_symbol(start: GuestAddr, size: u64, name: Option<&'a str>) -> Self {
        let end = start.raw().checked_add(size).filter(|_| size > 0).map(GuestAddr::new);
        Self { start, end, name, from_eh_frame: false }
    }

    pub fn known(&self) -> KnownFunction {
        KnownFunction { start: self.start, end: self.end }
    }
}

/// Sorts, and makes one of what begins at the same address: bounds from `.eh_frame`, the name from a symbol.
pub(super) fn settle(functions: &mut Vec<Function<'_>>) {
    functions.sort_by_key(|f| (f.start, !f.from_eh_frame, f.end.is_none()));
    functions.dedup_by(|later, first| {
        let same = later.start == first.start;
        if same {
            first.name = first.name.or(later.name);
            first.end = first.end.or(later.end);
        }
        same
    });
}

type Slice<'a> = EndianSlice<'a, gimli::LittleEndian>;

/// The ranges of all FDEs that can be read; what cannot is skipped.
pub(super) fn from_eh_frame<'a>(data: &'a [u8], header: &FileHeader64<LittleEndian>) -> Vec<Function<'a>> {
    let Some((addr, bytes)) = eh_frame_section(data, header).or_else(|| eh_frame_segment(data, header))
    else {
        return vec![];
    };
    let section = EhFrame::new(bytes, gimli::LittleEndian);
    let bases = BaseAddresses::default().set_eh_frame(addr);
    let mut entries = section.entries(&bases);
    // A CIE is shared by many FDEs; parsing it for each would be quadratic in a hostile file.
    let mut cies = HashMap::new();
    let mut found = vec![];
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else { continue };
        let fde = partial.parse(|section, bases, offset| match cies.get(&offset.0) {
            Some(cie) => Clone::clone(cie),
            None => {
                let cie = section.cie_from_offset(bases, offset);
                cies.insert(offset.0, cie.clone());
                cie
            }
        });
        if let Ok(fde) = fde
            && fde.len() > 0
            // glibc's __restore_rt is said to begin one byte before it does, for unwinders that look up rip - 1.
            && !fde.is_signal_trampoline()
        {
            let start = GuestAddr::new(fde.initial_address());
            let end = fde.initial_address().checked_add(fde.len()).map(GuestAddr::new);
            found.push(Function { start, end, name: None, from_eh_frame: true });
        }
    }
    found
}

fn eh_frame_section<'a>(data: &'a [u8], header: &FileHeader64<LittleEndian>) -> Option<(u64, &'a [u8])> {
    let e = LittleEndian;
    let sections = header.sections(e, data).ok()?;
    let (_, section) = sections.section_by_name(e, b".eh_frame")?;
    Some((section.sh_addr(e), section.data(e, data).ok()?))
}

/// Without section headers, the program header for `.eh_frame_hdr` leads there.
fn eh_frame_segment<'a>(data: &'a [u8], header: &FileHeader64<LittleEndian>) -> Option<(u64, &'a [u8])> {
    let e = LittleEndian;
    let segments = header.program_headers(e, data).ok()?;
    let hdr = segments.iter().find(|s| s.p_type(e) == PT_GNU_EH_FRAME)?;
    let bases = BaseAddresses::default().set_eh_frame_hdr(hdr.p_vaddr(e));
    let bytes = hdr.data(e, data).ok()?;
    let parsed: gimli::ParsedEhFrameHdr<Slice<'_>> =
        EhFrameHdr::new(bytes, gimli::LittleEndian).parse(&bases, 8).ok()?;
    let Pointer::Direct(addr) = parsed.eh_frame_ptr() else { return None };
    segments.iter().filter(|s| s.p_type(e) == PT_LOAD).find_map(|s| {
        let from = usize::try_from(addr.checked_sub(s.p_vaddr(e))?).ok()?;
        Some((addr, s.data(e, data).ok()?.get(from..)?))
    })
}
