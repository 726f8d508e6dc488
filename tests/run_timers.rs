//! Timers on every clock, clocks of other processes and threads, descriptors of signals, processes and times.

mod common {
    pub mod bounded;
    pub mod cli;
    pub mod parts;
}

use common::parts::compare;

#[test]
fn timers_and_clocks_in_detail() {
    compare("timer_details");
}

#[test]
fn descriptors_of_events() {
    compare("event_descriptors");
}
