//! Every site of every fixture, as text: bytes before, plan and reason, trampoline, bytes after.
//!
//! `INSTA_UPDATE=always cargo test -p usertrap --test fixtures` blesses a change; the diff is for the review.

mod support;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use object::{Object, ObjectSection, ObjectSymbol};
use support::memory::Blocks;
use usertrap::{CodeWindow, GuestAddr, Limits, PatchMap, SyshandlerAddr, TrampolineAddr, scan};

const SYSHANDLER: SyshandlerAddr = SyshandlerAddr::new(0x7000_0000_0000);
const TRAMPOLINES: u64 = 0x1000_0000;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/sites")
}

fn fixtures() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory()).expect("fixtures/sites exists");
    let mut elfs: Vec<_> = entries.map(|e| e.expect("readable").path()).collect();
    elfs.retain(|p| p.extension().is_some_and(|e| e == "elf"));
    elfs.sort();
    elfs
}

fn name(path: &Path) -> &str {
    path.file_stem().and_then(|s| s.to_str()).expect("fixtures have plain names")
}

#[test]
fn plans_of_all_fixture_sites() {
    let fixtures = fixtures();
    assert!(fixtures.len() >= 9, "fixtures are missing: {fixtures:?}");
    for path in fixtures {
        let data = std::fs::read(&path).expect("readable");
        let scan = scan(&data).expect("fixtures are ELF files");
        let mut text = String::new();
        for (i, site) in scan.sites.iter().enumerate() {
            let at = TrampolineAddr::new(TRAMPOLINES + 0x1000 * i as u64);
            writeln!(text, "{}", scan.describe(site, at, SYSHANDLER)).unwrap();
        }
        let tiers = [1, 2, 3, 4].map(|t| scan.count(t));
        writeln!(
            text,
            "{} sites, by tier {tiers:?}; gVisor's rule: {}",
            scan.sites.len(),
            scan.gvisor_count()
        )
        .unwrap();
        writeln!(text, "no instructions: {:?}", scan.not_instructions).unwrap();
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name(&path), text);
        });
    }
}

/// What eager patching relies on: the plans of a scan hold wherever the file is mapped.
#[test]
fn plans_of_a_scan_serve_a_mapping_elsewhere() {
    let mut served = 0;
    for path in fixtures() {
        let data = std::fs::read(&path).expect("readable");
        let scan = scan(&data).expect("fixtures are ELF files");
        // The whole file, mapped at an address that it was not linked for.
        let base = GuestAddr::new(0x7fab_cdef_0000);
        for site in &scan.sites {
            let Ok(plan) = &site.result else { continue };
            let at = base.wrapping_offset(site.file_offset as i64);
            let window = CodeWindow::new(base, &data, at).expect("the site is in the file");
            assert!(plan.matches(&window), "{} {}", name(&path), site.site);
            let (mut map, mut memory) = (PatchMap::new(Limits::default()), Blocks::default());
            let mode = plan.write_mode(at);
            assert_eq!(mode, plan.write_mode(site.site));
            map.prepare(plan, &window, SYSHANDLER, mode, &mut memory).expect("a plan can be applied");
            served += 1;
        }
    }
    assert!(served >= 40, "{served}");
}

/// The fixtures in the repository are what their sources say. Whole files may differ between versions of the tools;
/// code, unwind tables and symbols may not.
#[test]
fn fixtures_are_what_their_sources_assemble_to() {
    if Command::new("as").arg("--version").output().is_err()
        || Command::new("ld").arg("--version").output().is_err()
    {
        eprintln!(
            "**** NOT CHECKED: `as` or `ld` is missing, so the fixtures cannot be compared with their sources"
        );
        return;
    }
    let out = std::env::temp_dir().join(format!("usertrap-sites-{}", std::process::id()));
    std::fs::create_dir_all(&out).expect("a place to assemble");
    let status = Command::new("sh").arg(directory().join("build.sh")).env("OUT", &out).status();
    assert!(status.expect("sh runs").success(), "the fixtures do not assemble");
    for path in fixtures() {
        let committed = std::fs::read(&path).expect("readable");
        let fresh = std::fs::read(out.join(path.file_name().unwrap())).expect("build.sh makes every fixture");
        assert_eq!(digest(&committed), digest(&fresh), "{} differs from its source", name(&path));
    }
    let _ = std::fs::remove_dir_all(&out);
}

type Digest = (Vec<(String, u64, Vec<u8>)>, Vec<(String, u64, u64)>);

fn digest(data: &[u8]) -> Digest {
    let file = object::File::parse(data).expect("an object file");
    let sections = [".text", ".eh_frame"].iter().filter_map(|n| file.section_by_name(n));
    let sections = sections.map(|s| (s.name().unwrap().to_owned(), s.address(), s.data().unwrap().to_vec()));
    let mut symbols: Vec<_> =
        file.symbols().map(|s| (s.name().unwrap_or_default().to_owned(), s.address(), s.size())).collect();
    symbols.sort();
    (sections.collect(), symbols)
}
