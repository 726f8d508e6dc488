//! What `Systrap::stats` counts: calls of contexts that are still running, and sites by how calls arrive from them.

use systrap::{AddressSpace, Context, Options, Patching, Systrap};

#[path = "common/small_guest.rs"]
mod small_guest;
use iced_x86::code_asm::{eax, r12, r13, rdi};
use small_guest::{assemble, guest, next_call};

/// A guest that calls nr 1000 with a counter for ever, with enough code in front of the site to prove boundaries.
fn counting_code() -> Vec<u8> {
    assemble(|a| {
        let mut again = a.create_label();
        (|| {
            for i in 0..32 {
                a.add(r13, 0x1234_0000 + i)?;
            }
            a.set_label(&mut again)?;
            a.inc(r12)?;
            a.mov(rdi, r12)?;
            a.mov(eax, 1000)?;
            a.syscall()?;
            a.jmp(again)
        })()
        .expect("valid instructions");
    })
}

fn next_count(context: &mut Context, space: &AddressSpace, count: u64) {
    let call = next_call(context, space);
    assert_eq!((call.nr, call.args[0]), (1000, count), "number and counter of the call");
}

fn platform(patching: Patching) -> Systrap {
    Systrap::new(Options::new().patching(patching)).expect("a platform")
}

#[test]
fn a_context_that_is_still_attached_is_counted() {
    let platform = platform(Patching::Lazy);
    let (space, mut context) = guest(&platform, &counting_code());
    for count in 1..=10 {
        next_count(&mut context, &space, count);
        let stats = platform.stats();
        assert_eq!((stats.calls, stats.trapped, stats.patched), (count, 1, count - 1));
    }
    let before = platform.stats();
    context.release().expect("the context lets go");
    assert_eq!(platform.stats(), before, "letting go changes nothing");
    drop((context, space));
    assert_eq!(platform.stats(), before, "nor does its end");
}

#[test]
fn a_site_is_patched_when_a_call_arrives_that_way() {
    let platform = platform(Patching::Lazy);
    let (space, mut context) = guest(&platform, &counting_code());
    next_count(&mut context, &space, 1);
    let stats = platform.stats();
    assert_eq!(
        (stats.sites, stats.sites_patched, space.patched_sites()),
        (1, 0, 1),
        "patched, and not yet used"
    );
    for count in 2..5 {
        next_count(&mut context, &space, count);
        let stats = platform.stats();
        assert_eq!((stats.sites, stats.sites_patched), (1, 1));
    }
}

#[test]
fn sites_of_different_address_spaces_are_different_sites() {
    let platform = platform(Patching::Lazy);
    let mut guests: Vec<_> = (0..3).map(|_| guest(&platform, &counting_code())).collect();
    for count in 1..4 {
        for (space, context) in &mut guests {
            next_count(context, space, count);
        }
    }
    let stats = platform.stats();
    assert_eq!((stats.calls, stats.trapped, stats.sites, stats.sites_patched), (9, 3, 3, 3));
}

#[test]
fn nothing_counts_as_patched_when_patching_is_off() {
    let platform = platform(Patching::Off);
    let (space, mut context) = guest(&platform, &counting_code());
    for count in 1..6 {
        next_count(&mut context, &space, count);
    }
    let stats = platform.stats();
    assert_eq!((stats.trapped, stats.patched, stats.sites, stats.sites_patched), (5, 0, 1, 0));
}

#[test]
fn contexts_on_several_threads_add_up() {
    const CALLS: u64 = 200;
    let platform = platform(Patching::Lazy);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let (space, mut context) = guest(&platform, &counting_code());
                (1..=CALLS).for_each(|count| next_count(&mut context, &space, count));
            });
        }
        // Reading while they run sees sums that only grow.
        let mut last = 0;
        while last < 3 * CALLS {
            let calls = platform.stats().calls;
            assert!(calls >= last && calls <= 3 * CALLS, "{calls} after {last}");
            last = calls;
            std::thread::yield_now();
        }
    });
    let stats = platform.stats();
    assert_eq!((stats.calls, stats.trapped, stats.patched), (3 * CALLS, 3, 3 * CALLS - 3));
}
