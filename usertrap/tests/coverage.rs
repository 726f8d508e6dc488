//! How much of this machine's libraries the tiers reach.

use usertrap::*;

#[test]
fn libc_and_the_dynamic_linker_are_covered() {
    for path in ["/usr/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"] {
        let data = std::fs::read(path).unwrap();
        let t = std::time::Instant::now();
        let scan = scan(&data).unwrap();
        println!(
            "{path}: {} sites {:?} not {} gv {} {:?}",
            scan.sites.len(),
            [1, 2, 3, 4].map(|t| scan.count(t)),
            scan.not_instructions.len(),
            scan.gvisor_count(),
            t.elapsed()
        );
        for s in &scan.sites {
            if let Err(r) = &s.result {
                println!("{} {:?} {r}", s.site, s.function);
                println!(
                    "{}",
                    scan.describe(s, TrampolineAddr::new(0x10000000), SyshandlerAddr::new(0x700000000000))
                );
            } else if s.result.as_ref().unwrap().tier().number() > 1 {
                println!(
                    "{}",
                    scan.describe(s, TrampolineAddr::new(0x10000000), SyshandlerAddr::new(0x700000000000))
                );
            }
        }
    }
}
