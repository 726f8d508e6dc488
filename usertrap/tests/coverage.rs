//! How much of this machine's C library the tiers reach, next to what gVisor's rule reaches.

use usertrap::scan;

/// Per cent of proved or probable sites that tiers 1 to 3 have to reach.
const WANTED_PERCENT: usize = 98;

const FILES: [&[&str]; 2] = [
    &["/usr/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6", "/usr/lib/libc.so.6"],
    &["/lib64/ld-linux-x86-64.so.2"],
];

#[test]
fn this_machines_libc_and_dynamic_linker_are_covered() {
    println!("{:<40} sites   tier 1   2   3   4   gVisor   not instructions   time", "file");
    for candidates in FILES {
        let Some((path, data)) = candidates.iter().find_map(|p| Some((p, std::fs::read(p).ok()?))) else {
            eprintln!("**** NOT CHECKED: none of {candidates:?} is on this machine");
            continue;
        };
        let begun = std::time::Instant::now();
        let scan = scan(&data).expect("a library is an ELF file");
        let took = begun.elapsed();
        let [one, two, three, four] = [1, 2, 3, 4].map(|t| scan.count(t));
        println!(
            "{path:<40} {:5} {one:8} {two:3} {three:3} {four:3} {:8} {:18}   {took:?}",
            scan.sites.len(),
            scan.gvisor_count(),
            scan.not_instructions.len(),
        );
        for site in &scan.sites {
            if let Err(refusal) = &site.result {
                println!("  {} {}: {refusal}", site.site, site.function.as_deref().unwrap_or("?"));
            }
        }
        let reached = one + two + three;
        assert!(scan.sites.len() >= 20, "{path} has few sites: {}", scan.sites.len());
        assert!(reached * 100 >= scan.sites.len() * WANTED_PERCENT, "{reached} of {}", scan.sites.len());
    }
}

/// Nothing is known but the bytes, as in a stripped file without unwind tables: votes alone have to do.
#[test]
fn votes_alone_agree_with_the_unwind_tables() {
    let Some(data) = FILES[0].iter().find_map(|p| std::fs::read(p).ok()) else {
        eprintln!("**** NOT CHECKED: no libc on this machine");
        return;
    };
    let informed = scan(&data).expect("a library is an ELF file");
    let mut blind = data.clone();
    // No section headers, and the program header of the unwind tables no longer says so.
    blind[0x28..0x30].fill(0);
    blind[0x3a..0x40].fill(0);
    let headers = u16::from_le_bytes([blind[0x38], blind[0x39]]) as usize;
    for at in (0..headers).map(|i| 64 + 56 * i) {
        if blind[at..at + 4] == 0x6474_e550_u32.to_le_bytes() {
            blind[at] = 0;
        }
    }
    let blind = scan(&blind).expect("still an ELF file");
    let planned = blind.sites.iter().filter(|s| s.result.is_ok()).count();
    println!(
        "blind: {planned} of {} sites, by tier {:?}",
        blind.sites.len(),
        [1, 2, 3, 4].map(|t| blind.count(t))
    );
    // What is planned blindly are real sites, and instructions that the informed scan knows as well.
    let mut differ = 0;
    for site in blind.sites.iter().filter(|s| s.result.is_ok()) {
        let other = informed.sites.iter().find(|s| s.site == site.site);
        let other = other.unwrap_or_else(|| panic!("{} is no site, says the informed scan", site.site));
        let heads = [site, other].map(|s| s.result.as_ref().map(|p| (p.tier().number(), p.head())));
        differ += usize::from(heads[0] != heads[1]);
    }
    println!("{differ} plans differ");
    assert!(planned * 100 >= informed.sites.len() * 90, "{planned} of {}", informed.sites.len());
}
