//! Programs that queue signals, nest handlers, are interrupted in blocked calls and set timers.

mod common {
    pub mod bounded;
    pub mod cli;
    pub mod parts;
}

use common::parts::compare;

#[test]
fn pending_signals_are_taken_in_order() {
    compare("signal_queues");
}

#[test]
fn frames_keep_and_change_the_state() {
    compare("signal_frames");
}

#[test]
fn blocked_calls_restart_or_say_eintr() {
    compare("restarts");
}

#[test]
fn timers_expire() {
    compare("timers");
}
