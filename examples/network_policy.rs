//! Lets a program use the network of this machine only: sockets bind to, connect to and send to loopback addresses.
//!
//! ```sh
//! cargo run --release --example network_policy -- /bin/bash -c 'echo > /dev/tcp/192.0.2.1/80'
//! ```
//!
//! The policy sees each address as the call will use it, whatever another thread of the program writes there meanwhile.

use std::ffi::CString;
use systrap::sentry::{ArgValue, Call, CallSet, Errno, Guest, Hook, SocketAddress, Verdict};

struct Loopback;

/// What is not known is not permitted; a Unix socket is no network, and netlink tells programs of its interfaces.
fn is_permitted(address: &SocketAddress) -> bool {
    match (address.ip(), address.family().map(i32::from)) {
        (Some(address), _) => address.ip().is_loopback(),
        (None, family) => matches!(family, Some(libc::AF_UNIX | libc::AF_NETLINK)),
    }
}

impl Hook for Loopback {
    type TaskState = ();

    // Whatever takes an address, so that none is forgotten.
    fn calls(&self) -> CallSet {
        CallSet::taking_socket_addresses()
    }

    fn before(&self, (): &mut (), call: &mut Call<'_>) -> Verdict {
        let permitted = call.args().all(|arg| match arg.value() {
            ArgValue::SocketAddress(address) => is_permitted(address),
            // A message without an address goes where its socket is connected.
            ArgValue::Messages(messages) => {
                messages.iter().filter_map(|message| message.address()).all(is_permitted)
            }
            _ => true,
        });
        if permitted {
            return Verdict::Proceed;
        }
        eprintln!("task {}: {call} is not permitted", call.task().tid);
        Verdict::Deny(Errno::EACCES)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let program: Vec<CString> = std::env::args().skip(1).map(CString::new).collect::<Result<_, _>>()?;
    let path = program.first().ok_or("usage: network_policy PROGRAM [ARGUMENT]...")?.clone();

    let outcome = Guest::new(path).args(program).hook(Loopback).run()?;
    outcome.status.end_this_process()
}
