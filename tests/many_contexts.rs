//! Many more contexts than cores make progress together, in one address space and in fifty; a context moves between
//! address spaces with its whole state.

mod common {
    pub mod fixture;
    pub mod guest;
}

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use common::fixture::{DATA, DUMP, Fixture};
use common::guest::{map, new_context};
use iced_x86::code_asm::*;
use systrap::{AddressSpace, Context, Event, GuestAddr, Options, Protection, SwitchError, Syscall, Systrap};

const CONTEXTS: usize = 200;
const SPACES: usize = 50;
const CALLS: u64 = 100;
/// Far more than anything here takes, so that a hang ends the test.
const LIMIT: Duration = Duration::from_secs(120);

/// Makes calls with r12 (who it is), rbx (how many) and xmm5 (a running sum of results) as arguments.
fn summing() -> Fixture {
    Fixture::new(|asm| {
        let mut again = asm.create_label();
        asm.movq(xmm5, r12)?;
        asm.set_label(&mut again)?;
        asm.mov(rdi, r12)?;
        asm.mov(rsi, rbx)?;
        asm.movq(rdx, xmm5)?;
        asm.mov(eax, 700)?;
        asm.syscall()?;
        asm.movq(xmm0, rax)?;
        asm.paddq(xmm5, xmm0)?;
        asm.inc(rbx)?;
        asm.jmp(again)
    })
}

/// A context of [`summing`] and what it should do next.
struct Summer {
    context: Context,
    id: u64,
    calls: u64,
    sum: u64,
}

impl Summer {
    fn new(platform: &Systrap, id: usize) -> Self {
        let mut context = new_context(platform);
        let id = id as u64 * 0x1_0000_0001 + 7;
        context.registers_mut().r12 = id;
        Self { context, id, calls: 0, sum: id }
    }

    /// One call, checked.
    fn step(&mut self, space: &AddressSpace) {
        let event = self.context.switch(space).expect("the guest runs");
        let Event::Syscall(Syscall { nr: 700, args: [id, calls, sum, ..], .. }) = event else {
            panic!("context {} after {} calls: {event:?}", self.id, self.calls);
        };
        assert_eq!((id, calls, sum), (self.id, self.calls, self.sum), "who, how many, and what came of it");
        let result = self.id ^ self.calls << 20;
        self.context.set_return(result as i64);
        self.sum = self.sum.wrapping_add(result);
        self.calls += 1;
    }
}

fn platform_with_spaces(count: usize, fixture: &Fixture) -> (Systrap, Vec<AddressSpace>) {
    let platform = Systrap::new(Options::new()).expect("a platform");
    let spaces =
        (0..count).map(|_| platform.new_address_space().expect("an address space")).collect::<Vec<_>>();
    spaces.iter().for_each(|space| map(space, fixture));
    (platform, spaces)
}

/// Every context has a thread of the supervisor; all of them wait with a call before any goes on.
fn all_sum_at_once(spaces: usize) {
    let (platform, spaces) = platform_with_spaces(spaces, &summing());
    let all_have_called = Barrier::new(CONTEXTS);
    let started = Instant::now();
    thread::scope(|scope| {
        for id in 0..CONTEXTS {
            let (platform, space, barrier) = (&platform, &spaces[id % spaces.len()], &all_have_called);
            scope.spawn(move || {
                let mut summer = Summer::new(platform, id);
                summer.step(space);
                barrier.wait();
                for _ in 0..CALLS {
                    summer.step(space);
                }
            });
        }
    });
    println!("{CONTEXTS} contexts, {} address spaces: {:?}", spaces.len(), started.elapsed());
    assert!(started.elapsed() < LIMIT, "all came to their end, but too slowly: {:?}", started.elapsed());
    assert!(spaces.iter().all(|space| space.stub_exit().is_none()));
    let stats = platform.stats();
    assert_eq!(stats.calls, CONTEXTS as u64 * (CALLS + 1), "every call was counted once");
}

#[test]
fn two_hundred_contexts_in_one_address_space() {
    all_sum_at_once(1);
}

#[test]
fn two_hundred_contexts_in_fifty_address_spaces() {
    all_sum_at_once(SPACES);
}

#[test]
fn one_supervisor_thread_drives_two_hundred_contexts_in_turn() {
    let (platform, spaces) = platform_with_spaces(SPACES, &summing());
    let mut summers: Vec<Summer> = (0..CONTEXTS).map(|id| Summer::new(&platform, id)).collect();
    for _ in 0..10 {
        for (id, summer) in summers.iter_mut().enumerate() {
            summer.step(&spaces[id % SPACES]);
        }
    }
}

/// Guests that only compute: each of them gets its share of the cores, and each can be stopped.
#[test]
fn two_hundred_computing_contexts_all_count() {
    let counting = Fixture::new(|asm| {
        let mut again = asm.create_label();
        asm.set_label(&mut again)?;
        asm.inc(qword_ptr(r12))?;
        asm.jmp(again)
    });
    let (platform, spaces) = platform_with_spaces(SPACES, &counting);
    let counter = |id: usize| GuestAddr::new(DUMP + id as u64 * 8);
    let mut contexts: Vec<Context> = (0..CONTEXTS).map(|_| new_context(&platform)).collect();
    let interrupters: Vec<_> = contexts.iter().map(Context::interrupter).collect();
    thread::scope(|scope| {
        for (id, context) in contexts.iter_mut().enumerate() {
            let space = &spaces[id % SPACES];
            scope.spawn(move || {
                context.registers_mut().r12 = counter(id).raw();
                assert_eq!(context.switch(space).expect("the guest runs"), Event::Interrupted);
            });
        }
        let started = Instant::now();
        let mut waiting: Vec<usize> = (0..CONTEXTS).collect();
        while !waiting.is_empty() && started.elapsed() < LIMIT {
            waiting.retain(|&id| {
                let mut count = [0; 8];
                spaces[id % SPACES].read(counter(id), &mut count).expect("mapped memory");
                u64::from_le_bytes(count) < 1000
            });
            thread::sleep(Duration::from_millis(5));
        }
        interrupters.iter().for_each(systrap::Interrupter::interrupt);
        assert!(waiting.is_empty(), "contexts that do not get on: {waiting:?}");
    });
}

#[test]
fn a_context_wanders_through_address_spaces_with_its_state() {
    let (platform, spaces) = platform_with_spaces(10, &summing());
    let mut wanderers: Vec<Summer> = (0..3).map(|id| Summer::new(&platform, id)).collect();
    for turn in 0..100 {
        for (i, wanderer) in wanderers.iter_mut().enumerate() {
            wanderer.step(&spaces[(turn * 7 + i * 3) % spaces.len()]);
        }
    }
}

#[test]
fn a_context_sees_the_memory_of_the_address_space_it_is_in() {
    let telling = Fixture::new(|asm| {
        let mut again = asm.create_label();
        asm.set_label(&mut again)?;
        asm.mov(rdi, qword_ptr(DATA))?;
        asm.inc(qword_ptr(DATA))?;
        asm.syscall()?;
        asm.jmp(again)
    });
    let (platform, spaces) = platform_with_spaces(4, &telling);
    for (i, space) in spaces.iter().enumerate() {
        space.map_anonymous(DATA.into(), 0x1000, Protection::READ_WRITE).expect("free memory");
        space.write(DATA.into(), &[i as u8 * 50]).expect("writable");
    }
    let mut context = new_context(&platform);
    for visit in 0..20 {
        for (i, space) in spaces.iter().enumerate() {
            let event = context.switch(space).expect("the guest runs");
            let Event::Syscall(call) = event else { panic!("{event:?}") };
            assert_eq!(call.args[0], i as u64 * 50 + visit);
        }
    }
}

#[test]
fn the_stub_threads_of_contexts_that_left_are_used_again() {
    let (platform, spaces) = platform_with_spaces(2, &summing());
    let threads = |space: &AddressSpace| {
        std::fs::read_dir(format!("/proc/{}/task", space.pid())).expect("a living process").count()
    };
    let mut summer = Summer::new(&platform, 1);
    for turn in 0..50 {
        summer.step(&spaces[turn % 2]);
    }
    for id in 0..50 {
        Summer::new(&platform, id).step(&spaces[0]);
    }
    let counts = [threads(&spaces[0]), threads(&spaces[1])];
    assert_eq!(counts, [2, 2], "the leader and one stub thread each: the moved context let go of its own");
}

#[test]
fn a_context_outlives_its_address_space_if_its_state_was_pulled() {
    let (platform, mut spaces) = platform_with_spaces(3, &summing());
    let mut pulled = Summer::new(&platform, 1);
    let mut lost = Summer::new(&platform, 2);
    let doomed = spaces.pop().expect("three of them");
    pulled.step(&doomed);
    pulled.context.release().expect("the state is there");
    lost.step(&doomed);
    doomed.release().expect("it dies");
    pulled.step(&spaces[0]);
    pulled.step(&spaces[1]);
    for _ in 0..2 {
        let error = lost.context.switch(&spaces[0]).expect_err("nobody has its registers any more");
        assert!(matches!(error, SwitchError::StubDied { .. } | SwitchError::BadState { .. }), "{error:?}");
    }
}

#[test]
fn an_address_space_of_another_platform_is_refused() {
    let (one, spaces) = platform_with_spaces(1, &summing());
    let (_two, others) = platform_with_spaces(1, &summing());
    let mut summer = Summer::new(&one, 1);
    summer.step(&spaces[0]);
    let error = summer.context.switch(&others[0]).expect_err("it is not ours");
    assert!(error.to_string().contains("another Systrap"), "{error}");
    summer.step(&spaces[0]);
}
