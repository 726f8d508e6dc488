//! Eager patching: the sites of a file are patched when it is mapped; what is known of a file serves lazy patching too.

use std::io::Write;

use systrap::{Entry, GuestAddr, Options, PAGE_SIZE, Patching, Protection, Sharing, Systrap};

#[path = "common/site_files.rs"]
mod site_files;
use site_files::{LINKED, Site, SiteFile, call_from, caller};

const FIXTURES: [&str; 9] = [
    "branches",
    "cancellation",
    "neighbours",
    "number_loads",
    "padding",
    "straddling",
    "stripped_data",
    "stripped_false_mov",
    "windows",
];
/// Somewhere else than where the fixtures are linked.
const ELSEWHERE: GuestAddr = GuestAddr::new(0x5fab_cdef_0000);

fn platform(patching: Patching) -> Systrap {
    Systrap::new(Options::new().patching(patching)).expect("a platform")
}

fn at(base: GuestAddr, offset: u64) -> GuestAddr {
    GuestAddr::new(base.raw() + offset)
}

/// A copy of a fixture with an identity of its own.
fn copy_of(name: &str) -> (tempfile::NamedTempFile, SiteFile) {
    let mut copy = tempfile::NamedTempFile::new().expect("a file");
    copy.write_all(&SiteFile::fixture(name).bytes).expect("written");
    let file = SiteFile::at(copy.path().to_owned());
    (copy, file)
}

#[test]
fn every_planned_site_is_patched_right_after_map_file() {
    let platform = platform(Patching::Eager);
    let mut by_tier = [0; 4];
    for name in FIXTURES {
        let file = SiteFile::fixture(name);
        let sites = file.planned();
        for base in [LINKED, ELSEWHERE] {
            let space = platform.new_address_space().expect("an address space");
            file.map_text(&space, base);
            assert_eq!(space.patched_sites(), sites.len() as u64, "{name} at {base:?}");
        }
        sites.iter().for_each(|site| by_tier[usize::from(site.tier)] += 1);
    }
    println!("by tier: {:?}", &by_tier[1..]);
    assert!(by_tier[1..].iter().all(|count| *count > 0), "every tier is among them: {by_tier:?}");
    let eager = platform.stats().eager;
    assert_eq!(
        (eager.files_scanned, eager.mappings_left),
        (FIXTURES.len() as u64, 0),
        "one scan for each file"
    );
    assert_eq!(eager.sites_patched, 2 * eager.sites_planned);
}

#[test]
fn first_calls_arrive_as_patched_ones() {
    let platform = platform(Patching::Eager);
    for name in ["number_loads", "windows", "cancellation"] {
        let file = SiteFile::fixture(name);
        let space = platform.new_address_space().expect("an address space");
        file.map_text(&space, ELSEWHERE);
        let mut context = caller(&platform, &space);
        let sites = file.planned();
        for site in &sites {
            let call = call_from(&mut context, &space, at(ELSEWHERE, site.entry));
            assert_eq!(call.entry, Entry::Patched, "{name}: {site:x?}");
            // A branch among the copies may lead to another site; a call comes from one of them in any case.
            assert!(
                sites.iter().any(|s| at(ELSEWHERE, s.offset + 2) == call.ip),
                "{name}: {site:x?}, {call:x?}"
            );
        }
    }
    assert_eq!(platform.stats().trapped, 0);
}

#[test]
fn nothing_is_patched_when_patching_is_off_or_the_mapping_is_shared() {
    let file = SiteFile::fixture("number_loads");
    for (patching, sharing) in [(Patching::Off, Sharing::Private), (Patching::Eager, Sharing::Shared)] {
        let platform = platform(patching);
        let space = platform.new_address_space().expect("an address space");
        file.map(&space, LINKED, Protection::READ_EXECUTE, sharing);
        assert_eq!(space.patched_sites(), 0, "{patching:?} {sharing:?}");
        assert!(file.mapped_bytes(&space, LINKED) == file.bytes, "{patching:?} {sharing:?}: bytes changed");
        assert_eq!(platform.stats().eager.files_scanned, 0);
    }
}

#[test]
fn a_part_of_a_file_is_patched_where_it_is_mapped() {
    let platform = platform(Patching::Eager);
    let file = SiteFile::fixture("number_loads");
    let space = platform.new_address_space().expect("an address space");
    let opened = std::fs::File::open(&file.path).expect("readable");
    let fd = std::os::fd::AsFd::as_fd(&opened);
    // The text begins at this offset: the mapping holds nothing of what is in front.
    let text = PAGE_SIZE;
    let prot = Protection::READ_EXECUTE;
    space.map_file(ELSEWHERE, PAGE_SIZE, fd, text, prot, Sharing::Private).expect("mapped");
    assert_eq!(space.patched_sites(), file.planned().len() as u64);
    let mut context = caller(&platform, &space);
    let site = file.planned()[0];
    let call = call_from(&mut context, &space, at(ELSEWHERE, site.entry - text));
    assert_eq!((call.entry, call.ip), (Entry::Patched, at(ELSEWHERE, site.offset + 2 - text)));
}

/// Maps a file that cannot be scanned: its sites trap once, as with lazy patching.
fn left_to_lazy_patching(bytes: &[u8], len: u64, entry: u64, what: &str) {
    let platform = platform(Patching::Eager);
    let mut copy = tempfile::NamedTempFile::new().expect("a file");
    copy.write_all(bytes).expect("written");
    copy.as_file().set_len(len).expect("sparse");
    let space = platform.new_address_space().expect("an address space");
    let prot = Protection::READ_EXECUTE;
    let fd = std::os::fd::AsFd::as_fd(copy.as_file());
    space.map_file(LINKED, 2 * PAGE_SIZE, fd, 0, prot, Sharing::Private).expect("mapped");
    let eager = platform.stats().eager;
    assert_eq!((eager.files_scanned, eager.mappings_left, space.patched_sites()), (0, 1, 0), "{what}");
    let mut context = caller(&platform, &space);
    let entries = [(); 2].map(|()| call_from(&mut context, &space, at(LINKED, entry)).entry);
    assert_eq!(entries, [Entry::Trapped, Entry::Patched], "{what}");
}

#[test]
fn files_that_are_no_elf_or_too_big_are_left_to_lazy_patching() {
    let file = SiteFile::fixture("number_loads");
    let first = file.planned()[0];
    let mut no_elf = file.bytes.clone();
    no_elf[0] = 0;
    left_to_lazy_patching(&no_elf, 2 * PAGE_SIZE, first.entry, "no ELF file");
    left_to_lazy_patching(&file.bytes, (64 << 20) + 1, first.entry, "more than 64 MiB");
    let mut for_arm = file.bytes.clone();
    for_arm[18] = 183;
    left_to_lazy_patching(&for_arm, 2 * PAGE_SIZE, first.entry, "another processor");
}

#[test]
fn a_file_that_changes_is_scanned_again() {
    let platform = platform(Patching::Eager);
    let (mut copy, file) = copy_of("windows");
    for scans in 1..3 {
        let space = platform.new_address_space().expect("an address space");
        file.map_text(&space, LINKED);
        assert_eq!(space.patched_sites(), file.planned().len() as u64);
        assert_eq!(platform.stats().eager.files_scanned, scans);
        copy.write_all(b"another size is another identity").expect("written");
    }
}

#[test]
fn text_that_becomes_executable_is_patched_if_its_file_is_known() {
    let platform = platform(Patching::Eager);
    let file = SiteFile::fixture("neighbours");
    let planned = file.planned().len() as u64;
    let protected = || {
        let space = platform.new_address_space().expect("an address space");
        file.map(&space, LINKED, Protection::READ, Sharing::Private);
        assert_eq!(space.patched_sites(), 0, "not executable yet");
        file.protect(&space, LINKED, Protection::READ_EXECUTE);
        space.patched_sites()
    };
    assert_eq!(protected(), 0, "mprotect brings no descriptor to read the file from");
    assert_eq!(platform.stats().eager.mappings_left, 1);
    let other = platform.new_address_space().expect("an address space");
    file.map_text(&other, LINKED);
    assert_eq!(protected(), planned);
}

#[test]
fn patches_that_would_stop_or_synchronise_threads_wait_for_their_trap_while_a_context_is_attached() {
    let platform = platform(Patching::Eager);
    let space = platform.new_address_space().expect("an address space");
    let busy = SiteFile::fixture("number_loads");
    busy.map_text(&space, LINKED);
    let mut context = caller(&platform, &space);
    call_from(&mut context, &space, at(LINKED, busy.planned()[0].entry));
    let before = space.patched_sites();

    let mut traps_of_tier = [0; 4];
    for name in ["windows", "straddling", "padding"] {
        let file = SiteFile::fixture(name);
        file.map_text(&space, ELSEWHERE);
        let patched_at_once = space.patched_sites() - before;
        let mut trapped = 0;
        for site in file.planned() {
            let entries = [(); 2].map(|()| call_from(&mut context, &space, at(ELSEWHERE, site.entry)).entry);
            assert_eq!(entries[1], Entry::Patched, "{name}: {site:x?}");
            let traps = u64::from(entries[0] == Entry::Trapped);
            traps_of_tier[usize::from(site.tier)] += traps;
            trapped += traps;
        }
        println!("{name}: {patched_at_once} patched at once, {trapped} when they trapped");
        assert!(patched_at_once + trapped >= file.planned().len() as u64, "{name}");
        space.unmap(ELSEWHERE, 4 * PAGE_SIZE).expect("unmapped");
    }
    assert!(traps_of_tier[2] > 0 && traps_of_tier[3] > 0, "{traps_of_tier:?}");
}

/// A shell loop of short processes: the second one traps once, not once at each site.
#[test]
fn lazy_patching_profits_from_what_another_address_space_executed() {
    let platform = platform(Patching::Lazy);
    let file = SiteFile::fixture("number_loads");
    let sites: Vec<Site> = file.planned();
    let run = |base: GuestAddr, count: usize| -> Vec<Entry> {
        let space = platform.new_address_space().expect("an address space");
        file.map_text(&space, base);
        assert_eq!(space.patched_sites(), 0, "nothing before a call has trapped");
        let mut context = caller(&platform, &space);
        let calls = sites[..count].iter().map(|site| call_from(&mut context, &space, at(base, site.entry)));
        calls.map(|call| call.entry).collect()
    };
    let half = sites.len() / 2;
    assert_eq!(run(LINKED, half), vec![Entry::Trapped; half]);
    let mut expected = vec![Entry::Patched; sites.len()];
    expected[0] = Entry::Trapped;
    expected[half..].fill(Entry::Trapped);
    assert_eq!(run(ELSEWHERE, sites.len()), expected, "the first half was known");
}
