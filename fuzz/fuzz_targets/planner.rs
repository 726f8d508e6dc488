//! Any code at any address with any hints: see `usertrap/tests/support/fuzz.rs`.
#![no_main]

#[path = "../../usertrap/tests/support/mod.rs"]
mod support;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    support::fuzz::planner(input);
});
