//! The hand-off loses no wake-up, takes no reply twice and mixes up no data, in every interleaving and with
//! every delay of a store buffer; and the checker that says so finds each of a list of planted faults.

mod model;

use model::{Mutation, Op, Script, explore};

fn script(ops: &[Op]) -> Script {
    Script {
        ops: ops.to_vec(),
        interrupts: 0,
        spin: [0, 0],
        spurious: false,
        sleep_reply: true,
        execute: true,
        mutation: Mutation::None,
    }
}

/// All interleavings of a script hold, for every mixture of spin budgets.
fn holds(name: &str, base: &Script) {
    for spin in [[0, 0], [1, 0], [0, 1], [1, 2]] {
        let script = Script { spin, ..base.clone() };
        let report = explore(&script);
        if let Some((what, trace)) = report.failure {
            panic!("{name}, spin budgets {spin:?}: {what}\n{}", trace.join("\n"));
        }
        assert!(report.finished > 0, "{name}: a run that never ends shows nothing");
        println!("{name}, spin {spin:?}: {} states, {} transitions", report.states, report.transitions);
    }
}

/// The planted fault is found, in a script without which the sound protocol holds.
fn is_caught(mutation: Mutation, base: &Script) {
    let found = [[0, 0], [1, 0], [0, 1], [1, 1]].into_iter().find_map(|spin| {
        let script = Script { spin, mutation, ..base.clone() };
        explore(&script).failure
    });
    let (what, trace) = found.unwrap_or_else(|| panic!("{mutation:?} went unnoticed"));
    println!("{mutation:?}: {what}, after {} steps", trace.len());
}

#[test]
fn no_wake_up_is_lost_between_calls() {
    // Sleeps end only by a wake-up, so that a lost one shows as a standstill.
    holds("three calls", &script(&[Op::Call, Op::Call, Op::Call]));
}

#[test]
fn spurious_wake_ups_and_time_outs_change_nothing() {
    holds("spurious", &Script { spurious: true, ..script(&[Op::Call, Op::Call, Op::Call]) });
}

#[test]
fn interrupts_reach_a_guest_wherever_it_is() {
    let ops = [Op::Call, Op::Compute];
    holds("one interrupt", &Script { interrupts: 1, ..script(&ops) });
    holds("two interrupts", &Script { interrupts: 2, execute: false, ..script(&ops) });
    holds("interrupt, spurious", &Script { interrupts: 1, spurious: true, ..script(&ops) });
}

#[test]
fn interrupts_reach_a_call_that_the_stub_executes_wherever_it_is() {
    let ops = [Op::Block, Op::Call];
    holds("never interrupted", &Script { interrupts: 0, ..script(&ops) });
    holds("one interrupt", &Script { interrupts: 1, ..script(&ops) });
    holds("two interrupts", &Script { interrupts: 2, execute: false, ..script(&[Op::Block]) });
    holds(
        "interrupt, spurious",
        &Script { interrupts: 1, spurious: true, ..script(&[Op::Block, Op::Block]) },
    );
}

#[test]
fn interrupts_reach_a_call_that_is_passed_on_wherever_it_is() {
    let ops = [Op::Call, Op::Pass];
    holds("one interrupt", &Script { interrupts: 1, ..script(&ops) });
    holds("two interrupts", &Script { interrupts: 2, execute: false, ..script(&ops) });
    holds("interrupt, spurious", &Script { interrupts: 1, spurious: true, ..script(&ops) });
}

#[test]
fn a_lost_interrupt_of_an_executed_call_is_caught() {
    let base = Script { interrupts: 1, ..script(&[Op::Block]) };
    is_caught(Mutation::ExecutedCallIsRestarted, &base);
    is_caught(Mutation::SupervisorKicksOnce, &base);
    let base = Script { interrupts: 1, ..script(&[Op::Pass]) };
    is_caught(Mutation::ExecutedCallIsRestarted, &base);
    is_caught(Mutation::SupervisorKicksOnce, &base);
}

#[test]
fn missing_barriers_are_caught() {
    let base = script(&[Op::Call, Op::Call]);
    is_caught(Mutation::StubPublishesWithoutBarrier, &base);
    is_caught(Mutation::SupervisorPublishesWithoutBarrier, &base);
    is_caught(Mutation::StubAnnouncesByPlainStore, &base);
    is_caught(Mutation::SupervisorAnnouncesByPlainStore, &base);
    is_caught(Mutation::EventPutBackByPlainStore, &base);
}

#[test]
fn a_wrong_order_is_caught() {
    let base = script(&[Op::Call, Op::Call]);
    is_caught(Mutation::StubLooksBeforePublishing, &base);
    is_caught(Mutation::SupervisorLooksBeforePublishing, &base);
    is_caught(Mutation::ArgumentsAfterPublish, &base);
}

#[test]
fn a_missing_step_is_caught() {
    let base = script(&[Op::Call, Op::Call]);
    is_caught(Mutation::StubForgetsToWake, &base);
    is_caught(Mutation::SupervisorForgetsToWake, &base);
    is_caught(Mutation::StubSleepsUnannounced, &base);
    is_caught(Mutation::SupervisorSleepsUnannounced, &base);
    is_caught(Mutation::FutexDoesNotCompare, &base);
    is_caught(Mutation::SleepReplyTakenForResume, &base);
    let interrupted = Script { interrupts: 1, ..script(&[Op::Compute]) };
    is_caught(Mutation::InterrupterForgetsToWake, &interrupted);
    is_caught(Mutation::SupervisorIgnoresAttention, &interrupted);
}
