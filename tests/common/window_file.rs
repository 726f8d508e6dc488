//! Generated windows as the text of an ELF file, each in a function with a symbol: what an eager scan plans from.

use std::io::Write as _;

use systrap::{GuestAddr, PAGE_SIZE};

use crate::window_lab::{PAGES, Placed};

const FILE_HEADER: u64 = 64;
const SECTION_HEADER: u64 = 64;
const SYMBOL: u64 = 24;
/// `.text`, `.symtab` and `.strtab` in the table of names.
const NAMES: &[u8] = b"\0.text\0.symtab\0.strtab\0f\0";
const F: u32 = 23;

/// Where the text begins in the file.
pub const TEXT_OFFSET: u64 = PAGE_SIZE;

/// The file: the windows lie in it as they will in memory, [`PAGES`] at [`TEXT_OFFSET`].
pub fn write(batch: &[Placed]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(&image(batch)).expect("written");
    file
}

pub fn image(batch: &[Placed]) -> Vec<u8> {
    let text_len = 2 * PAGE_SIZE * batch.len() as u64;
    let mut text = vec![0_u8; text_len as usize];
    let mut symbols = vec![0_u8; SYMBOL as usize];
    for placed in batch {
        let at = (placed.base - PAGES) as usize;
        text[at..at + placed.window.code.len()].copy_from_slice(&placed.window.code);
        let (start, end) = placed.window.function;
        symbols.extend(symbol(placed.base, start));
        symbols.extend(symbol(placed.at(start), end - start));
    }
    let symbols_at = TEXT_OFFSET + text_len;
    let names_at = symbols_at + symbols.len() as u64;
    let headers_at = (names_at + NAMES.len() as u64).next_multiple_of(8);
    let mut file = file_header(headers_at);
    file.resize(TEXT_OFFSET as usize, 0);
    file.extend(text);
    file.extend(&symbols);
    file.extend(NAMES);
    file.resize(headers_at as usize, 0);
    // name, type, flags, address, offset, length, link, info, entry length
    file.extend(section([0; 9]));
    file.extend(section([1, 1, 6, PAGES, TEXT_OFFSET, text_len, 0, 0, 0]));
    file.extend(section([7, 2, 0, 0, symbols_at, symbols.len() as u64, 3, 1, SYMBOL]));
    file.extend(section([15, 3, 0, 0, names_at, NAMES.len() as u64, 0, 0, 0]));
    file
}

fn symbol(at: u64, len: usize) -> Vec<u8> {
    const GLOBAL_FUNCTION: u8 = 0x12;
    let mut entry = F.to_le_bytes().to_vec();
    entry.extend([GLOBAL_FUNCTION, 0, 1, 0]);
    entry.extend(at.to_le_bytes());
    entry.extend((len as u64).to_le_bytes());
    entry
}

fn file_header(sections_at: u64) -> Vec<u8> {
    const SHARED_OBJECT: u16 = 3;
    const X86_64: u16 = 62;
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    header.extend(SHARED_OBJECT.to_le_bytes());
    header.extend(X86_64.to_le_bytes());
    header.extend(1_u32.to_le_bytes());
    for word in [0, 0, sections_at] {
        header.extend(word.to_le_bytes());
    }
    header.extend(0_u32.to_le_bytes());
    for half in [FILE_HEADER as u16, 56, 0, SECTION_HEADER as u16, 4, 3] {
        header.extend(half.to_le_bytes());
    }
    assert_eq!(header.len() as u64, FILE_HEADER);
    header
}

fn section(fields: [u64; 9]) -> Vec<u8> {
    let [name, kind, flags, addr, offset, len, link, info, entry] = fields;
    let mut header = Vec::new();
    header.extend((name as u32).to_le_bytes());
    header.extend((kind as u32).to_le_bytes());
    for word in [flags, addr, offset, len] {
        header.extend(word.to_le_bytes());
    }
    header.extend((link as u32).to_le_bytes());
    header.extend((info as u32).to_le_bytes());
    header.extend(16_u64.to_le_bytes());
    header.extend(entry.to_le_bytes());
    header
}

/// Where the mapping of the text begins.
pub const TEXT: GuestAddr = GuestAddr::new(PAGES);
