//! Every site of the fixtures (`fixtures/sites`) does patched what it does on the host itself and trapped: run from every
//! instruction of its line, with random registers and flags, everything compared afterwards. Patched as it traps, and
//! before it ran.

#[path = "common/native_lab.rs"]
mod native_lab;
#[path = "common/patch_lab.rs"]
mod patch_lab;
#[path = "common/site_files.rs"]
mod site_files;
#[path = "../usertrap/tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::path::Path;

use native_lab::Native;

use object::{Object, ObjectSection, ObjectSymbol, SectionKind};
use patch_lab::{Run, Ways, bytes_at, first_difference, pages, platform, put_code, put_data, run, vectors};
use site_files::{LINKED, SiteFile};
use support::rng::Rng;
use systrap::{AddressSpace, Context, GuestAddr, Patching, Registers, Systrap};

/// What pointers point into, and the stack's page behind it.
const DATA: u64 = 0x2000_0000;
const DATA_LEN: u64 = 0x4000;
const RSP: u64 = DATA + 0x3000;
/// Where runs end: a `hlt`.
const END: u64 = 0x1000_0000;
const MOST_CALLS: usize = 6;
const SEEDS: u64 = 12;
/// CF PF AF ZF SF DF OF; a tracer cannot set ID.
const FLAGS: u64 = 0xcd5;

struct Text {
    at: u64,
    bytes: Vec<u8>,
    /// Site, and where runs to it begin.
    sites: Vec<(u64, Vec<u64>)>,
}

fn load(path: &Path) -> Text {
    let data = std::fs::read(path).expect("a fixture");
    let file = object::File::parse(&*data).expect("an ELF file");
    let section = file.sections().find(|s| s.kind() == SectionKind::Text).expect("a text section");
    let (at, bytes) = (section.address(), section.data().expect("its bytes").to_vec());
    let functions: Vec<u64> = file.symbols().map(|s| s.address()).filter(|a| *a >= at).collect();
    let scan = usertrap::scan(&data).expect("an ELF file");
    let sites = scan.sites.iter().map(|site| {
        let addr = site.site.raw();
        let mut entries = vec![addr];
        entries.extend(functions.iter().filter(|f| **f < addr).max());
        if let Ok(plan) = &site.result {
            entries.extend(plan.relocated().iter().map(|r| site.site.wrapping_offset(r.offset.into()).raw()));
        }
        entries.sort_unstable();
        entries.dedup();
        (addr, entries)
    });
    Text { at, bytes, sites: sites.collect() }
}

fn guest(platform: &Systrap, path: &Path, text: &Text, patching: Patching) -> (AddressSpace, Context) {
    let space = platform.new_address_space().expect("an address space");
    space.set_patching(patching);
    match patching {
        // Only what comes from a file can be planned before it runs.
        Patching::Eager => SiteFile::at(path.to_owned()).map_text(&space, LINKED),
        _ => put_code(&space, text.at, &text.bytes),
    }
    put_code(&space, END, &[0xf4]);
    put_data(&space, DATA, DATA_LEN, &[]);
    (space, platform.new_context().expect("a context"))
}

fn native(text: &Text) -> Native {
    let (code, data) = (libc::PROT_READ | libc::PROT_EXEC, libc::PROT_READ | libc::PROT_WRITE);
    let (at, len) = pages(text.at, text.bytes.len());
    let native = Native::new(&[(at, len, code), (END, systrap::PAGE_SIZE, code), (DATA, DATA_LEN, data)]);
    native.write(text.at, &text.bytes);
    native.write(END, &[0xf4]);
    native
}

/// Pointers and small numbers, so that code that follows its registers gets somewhere.
fn registers(rng: &mut Rng, entry: u64) -> Registers {
    let mut next = || match rng.below(3) {
        0 => rng.below(3) as u64,
        1 => rng.next(),
        _ => DATA + 0x800 + 8 * rng.below(64) as u64,
    };
    let regs = Registers {
        r8: next(),
        r9: next(),
        r10: next(),
        r11: next(),
        r12: next(),
        r13: next(),
        r14: next(),
        r15: next(),
        rdi: next(),
        rsi: next(),
        rbp: next(),
        rbx: DATA + 0x1000,
        rdx: next(),
        rax: next(),
        rcx: next(),
        ..Registers::default()
    };
    let fs_base = DATA + 0x100;
    Registers { rip: entry, rsp: RSP, fs_base, rflags: rng.next() & FLAGS | 0x202, ..regs }
}

/// What a run starts from.
fn start(entry: u64, seed: u64) -> (Vec<u8>, Registers) {
    let mut rng = Rng::new(seed);
    let mut data: Vec<u8> = (0..DATA_LEN / 8)
        .flat_map(|_| if rng.below(2) == 0 { [0; 8] } else { rng.next().to_le_bytes() })
        .collect();
    let top = (RSP - DATA) as usize;
    for at in (top..top + 64).step_by(8) {
        data[at..at + 8].copy_from_slice(&END.to_le_bytes());
    }
    (data, registers(&mut rng, entry))
}

fn fill_vectors(image: &mut [u8], seed: u64) -> Vec<u32> {
    let components = vectors::components(image.len());
    let mut rng = Rng::new(seed);
    vectors::fill(image, &components, || rng.next() as u8);
    components
}

fn run_once(
    (space, context): &mut (AddressSpace, Context),
    entry: u64,
    seed: u64,
    ways: &mut Ways,
    restarts: bool,
) -> (Run, Vec<u8>) {
    let (data, regs) = start(entry, seed);
    space.write(GuestAddr::new(DATA), &data).expect("the data is written");
    *context.registers_mut() = regs;
    fill_vectors(context.xstate_mut(), seed);
    let mut restart = Rng::new(seed);
    let run = run(context, space, MOST_CALLS, ways, |_| restarts && restart.below(3) == 0);
    (run, bytes_at(space, DATA, DATA_LEN as usize))
}

fn run_natively(native: &mut Native, entry: u64, seed: u64) -> (Run, Vec<u8>) {
    let (data, regs) = start(entry, seed);
    native.write(DATA, &data);
    let mut image = native.vectors();
    let components = fill_vectors(&mut image, seed);
    let run = native.run(&regs, &image, &components, MOST_CALLS);
    (run, native.read(DATA, DATA_LEN as usize))
}

/// How each of the sites was patched.
fn count_made(text: &Text, after: &[u8], made: &mut BTreeMap<&str, u64>) {
    for (site, _) in &text.sites {
        let offset = (site - text.at) as usize;
        // A jump that was not there before, near enough to be this site's.
        let new_jump = |at: &usize| after[*at] == 0xe9 && text.bytes[*at] != 0xe9;
        let kind = if (offset.saturating_sub(24)..offset).any(|at| new_jump(&at)) {
            "jump in front"
        } else if after[offset..offset + 2] != [0x0f, 5] {
            "short jump"
        } else {
            "none"
        };
        *made.entry(kind).or_default() += 1;
    }
}

/// Runs all sites of all fixtures natively, trapped and patched in this mode. Gives how they were patched.
fn compare_all(patching: Patching) -> (BTreeMap<&'static str, u64>, Ways) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sites");
    let mut files: Vec<_> =
        std::fs::read_dir(directory).expect("the fixtures").map(|e| e.expect("readable").path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "elf"));
    files.sort();
    assert!(files.len() >= 9, "fixtures are missing: {files:?}");
    let platform = platform(Patching::Off);
    let mut made = BTreeMap::new();
    let (mut ways, mut triples, mut sites) = (Ways::default(), 0_u64, 0_u64);
    let mut seed = 0;
    for path in &files {
        let text = load(path);
        let mut native = native(&text);
        let mut trapped = guest(&platform, path, &text, Patching::Off);
        let mut patched = guest(&platform, path, &text, patching);
        for turn in 0..SEEDS {
            for (site, entry) in
                text.sites.iter().flat_map(|(site, from)| from.iter().map(move |f| (*site, *f)))
            {
                seed += 1;
                let on_host = run_natively(&mut native, entry, seed);
                let one = run_once(&mut trapped, entry, seed, &mut Ways::default(), false);
                let other = run_once(&mut patched, entry, seed, &mut ways, turn > 0);
                let what = format!("{}: site {site:#x} from {entry:#x}, seed {seed}", path.display());
                on_host.0.assert_same(&one.0.traced(), || format!("native against trapped, {what}"));
                one.0.assert_same(&other.0, || format!("trapped against patched, {what}"));
                assert_eq!(first_difference(&on_host.1, &one.1), None, "data, trapped, {what}");
                assert_eq!(first_difference(&on_host.1, &other.1), None, "data, patched, {what}");
                triples += 1;
            }
        }
        count_made(&text, &bytes_at(&patched.0, text.at, text.bytes.len()), &mut made);
        sites += text.sites.len() as u64;
        assert_eq!(
            bytes_at(&trapped.0, text.at, text.bytes.len()),
            text.bytes,
            "unpatched code stays as it is"
        );
        patched.0.roll_back_patches();
        let rolled_back = bytes_at(&patched.0, text.at, text.bytes.len());
        assert_eq!(first_difference(&rolled_back, &text.bytes), None, "{}", path.display());
    }
    let files = files.len();
    println!(
        "{patching:?}: {sites} sites of {files} files, {made:?}; {triples} triples of runs equal, {ways:?}"
    );
    assert!(sites >= 40);
    (made, ways)
}

#[test]
fn every_fixture_site_runs_the_same_natively_trapped_and_patched() {
    let (made, ways) = compare_all(Patching::Lazy);
    assert!(made["jump in front"] >= 20 && made["short jump"] >= 3, "{made:?}");
    assert!(ways.patched > 200 && ways.restarted > 50, "{ways:?}");
}

#[test]
fn every_fixture_site_runs_the_same_natively_and_patched_before_it_ran() {
    let (made, ways) = compare_all(Patching::Eager);
    assert!(made["jump in front"] >= 25 && made["short jump"] >= 3, "{made:?}");
    assert!(ways.patched > 500 && ways.restarted > 50, "{ways:?}");
}
