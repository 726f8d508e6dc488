//! What a patch costs: the planner on a C library, the first trap of a site, with and without plans from before, and
//! eager patching of a whole library. Prints medians; fails when a goal is missed by a factor of ten, or when a row could
//! not be measured.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use systrap::{
    AddressSpace, Context, Entry, Event, GuestAddr, Options, PAGE_SIZE, Patching, Protection, Sharing,
    Systrap,
};

const LIBCS: [&str; 3] = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6", "/usr/lib/libc.so.6"];
const BASE: u64 = 0x5fab_cdef_0000;
const DATA: GuestAddr = GuestAddr::new(0x7000_0000);
const ROUNDS: usize = 9;
const GOAL_FIRST: Duration = Duration::from_micros(50);
const GOAL_PLANNED: Duration = Duration::from_micros(5);

/// The library and those of its sites that are simple to call: `mov eax, imm32` in front of the `syscall`.
struct Library {
    path: &'static str,
    data: Vec<u8>,
    /// Offsets in the file of the `mov`.
    entries: Vec<u64>,
}

fn library() -> Library {
    let found = LIBCS.iter().find_map(|path| Some((*path, std::fs::read(path).ok()?)));
    let (path, data) = found.expect("a C library: without one there is nothing to measure");
    let scan = usertrap::scan(&data).expect("a library is an ELF file");
    let simple = |site: &&usertrap::ScannedSite| {
        site.result.as_ref().is_ok_and(|plan| plan.head() == -5 && plan.late_entry().is_none())
    };
    let entries = scan.sites.iter().filter(simple).map(|site| site.file_offset - 5).collect();
    Library { path, data, entries }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// The library's text mapped, and a context that can be sent anywhere in it.
fn guest(platform: &Systrap, library: &Library) -> (AddressSpace, Context, Duration) {
    let space = platform.new_address_space().expect("an address space");
    space.map_anonymous(DATA, 4 * PAGE_SIZE, Protection::READ_WRITE).expect("data");
    let file = File::open(library.path).expect("readable");
    let begun = Instant::now();
    let prot = Protection::READ_EXECUTE;
    let len = library.data.len() as u64;
    space.map_file(GuestAddr::new(BASE), len, file.as_fd(), 0, prot, Sharing::Private).expect("mapped");
    let took = begun.elapsed();
    (space, platform.new_context().expect("a context"), took)
}

fn call(context: &mut Context, space: &AddressSpace, offset: u64) -> (Duration, Entry) {
    context.pull_full_state().expect("the state");
    let regs = context.registers_mut();
    regs.rip = BASE + offset;
    regs.rsp = DATA.raw() + 2 * PAGE_SIZE;
    let begun = Instant::now();
    let event = context.switch(space).expect("the guest runs");
    let took = begun.elapsed();
    match event {
        Event::Syscall(call) => (took, call.entry),
        other => panic!("no call from {offset:#x} but {other:?}"),
    }
}

/// Medians of a call from each site: the first and the second.
fn first_and_second(platform: &Systrap, library: &Library) -> (Duration, Duration, u64) {
    let (space, mut context, _) = guest(platform, library);
    // The context gets its stub thread, and the process its first block of trampolines, by calls that do not count.
    for offset in &library.entries[..2] {
        call(&mut context, &space, *offset);
    }
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for offset in &library.entries[2..] {
        first.push(call(&mut context, &space, *offset).0);
        second.push(call(&mut context, &space, *offset).0);
    }
    (median(first), median(second), space.patched_sites())
}

fn row(what: &str, time: Duration, note: &str) {
    println!("{what:<58} {:>10.2} µs   {note}", time.as_secs_f64() * 1e6);
}

fn main() {
    let library = library();
    let sites = library.entries.len();
    println!("{}: {sites} simple sites", library.path);

    // The planner alone.
    let scans = (0..ROUNDS).map(|_| {
        let begun = Instant::now();
        std::hint::black_box(usertrap::scan(&library.data).expect("scanned").sites.len());
        begun.elapsed()
    });
    let scan_time = median(scans.collect());
    let all = usertrap::scan(&library.data).expect("scanned").sites.len();
    row(
        "scan of the file",
        scan_time,
        &format!("{all} sites, {:.0} sites/s", all as f64 / scan_time.as_secs_f64()),
    );
    let plan_time = planner(&library);
    row("planner, one site by votes", plan_time, &format!("{:.0} sites/s", 1.0 / plan_time.as_secs_f64()));

    // A trap that patches nothing, a trap that plans and patches, and the patched call.
    let off = Systrap::new(Options::new().patching(Patching::Off)).expect("a platform");
    let (trapped, _, _) = first_and_second(&off, &library);
    let mut firsts = Vec::new();
    let mut seconds = Vec::new();
    for _ in 0..ROUNDS {
        let lazy = Systrap::new(Options::new().patching(Patching::Lazy)).expect("a platform");
        let (first, second, patched) = first_and_second(&lazy, &library);
        assert!(patched as usize * 10 >= sites * 9, "{patched} of {sites} sites were patched");
        firsts.push(first);
        seconds.push(second);
    }
    let (first, second) = (median(firsts), median(seconds));
    row("a call with its full state loaded: trapped", trapped, "");
    row("the same: patched", second, "");
    row("the same: trapped for the first time, planned and patched", first, "");
    let cost = first.saturating_sub(trapped);
    row("cost of a patch, all in", cost, &format!("goal {GOAL_FIRST:?}"));

    // The file was planned before: the first trap in the mapping patches all that was executed anywhere.
    let lazy = Systrap::new(Options::new().patching(Patching::Lazy)).expect("a platform");
    first_and_second(&lazy, &library);
    let known = (0..ROUNDS).map(|_| {
        let (space, mut context, _) = guest(&lazy, &library);
        let (took, _) = call(&mut context, &space, library.entries[0]);
        let patched = u32::try_from(space.patched_sites()).expect("a count");
        assert!(patched as usize * 10 >= sites * 9, "{patched} of {sites} sites were patched");
        took.saturating_sub(trapped) / patched
    });
    let known = median(known.collect());
    row("cost of a patch when the file was planned before", known, &format!("goal {GOAL_PLANNED:?}"));

    // Eager.
    let eager = Systrap::new(Options::new().patching(Patching::Eager)).expect("a platform");
    let (_, _, with_scan) = guest(&eager, &library);
    let mut patched = 0;
    let mapped = (0..ROUNDS).map(|_| {
        let (space, _, took) = guest(&eager, &library);
        patched = space.patched_sites();
        took
    });
    let mapped = median(mapped.collect());
    let each = mapped / u32::try_from(patched.max(1)).expect("a count");
    row("eager: the file is mapped for the first time", with_scan, "with its scan");
    row("eager: it is mapped again", mapped, &format!("{patched} sites, {each:?} each"));
    assert!(patched as usize >= sites, "{patched} of {sites} sites were patched");
    assert!(cost < 10 * GOAL_FIRST && known < 10 * GOAL_PLANNED, "far from the goals");
}

/// Time to plan one site as a trap does: from its window alone.
fn planner(library: &Library) -> Duration {
    let plan = |offset: u64| {
        let site = offset as usize + 5;
        let from = site.saturating_sub(usertrap::WINDOW_BEFORE);
        let bytes = &library.data[from..(site + usertrap::WINDOW_AFTER).min(library.data.len())];
        let (base, site) = (usertrap::GuestAddr::new(from as u64), usertrap::GuestAddr::new(site as u64));
        let window = usertrap::CodeWindow::new(base, bytes, site).expect("a window");
        let hints = usertrap::Hints { site_executed: true, ..usertrap::Hints::default() };
        let begun = Instant::now();
        std::hint::black_box(usertrap::plan(&window, &hints).is_ok());
        begun.elapsed()
    };
    median(library.entries.iter().map(|offset| plan(*offset)).collect())
}
