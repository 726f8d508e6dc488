//! Hostile files cost bounded time.

use std::path::Path;

use usertrap::scan;

#[test]
fn a_file_full_of_sites_is_scanned_in_bounded_time() {
    // One section of 50,000 times `syscall`, within one function as far as anyone knows.
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/sites");
    let mut file = std::fs::read(directory.join("stripped_data.elf")).unwrap();
    let at = file.len().next_multiple_of(16);
    file.resize(at, 0);
    file.extend([0x0f, 0x05].repeat(50_000));
    // The section header table goes; the only executable segment becomes the new bytes.
    file[0x28..0x30].fill(0);
    file[0x3a..0x40].fill(0);
    let headers = u16::from_le_bytes([file[0x38], file[0x39]]) as usize;
    for header in (0..headers).map(|i| 64 + 56 * i) {
        file[header + 8..header + 16].copy_from_slice(&(at as u64).to_le_bytes());
        file[header + 32..header + 40].copy_from_slice(&100_000u64.to_le_bytes());
        file[header + 4] |= 1;
    }
    let begun = std::time::Instant::now();
    let scan = scan(&file).unwrap();
    println!("{} sites in {:?}", scan.sites.len(), begun.elapsed());
    assert!(scan.truncated, "the cap is reached");
    assert!(scan.sites.len() + scan.not_instructions.len() <= 16 * 1024);
    assert!(begun.elapsed().as_secs() < 120, "{:?}", begun.elapsed());
}
