//! What hooks and the trace see of socket addresses and of the arguments of programs, and that it is what is used.

#![allow(unsafe_code)]

#[path = "common/alone.rs"]
mod alone;
#[path = "common/cli.rs"]
mod cli;

use alone::alone;
use cli::{fixture, scratch};
use std::ffi::CString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Arc, Mutex};
use systrap::sentry::{
    ArgError, ArgValue, Call, CallEnd, CallSet, Errno, ExitStatus, Guest, Hook, SocketAddress, Verdict,
};

fn guest(args: &[&str]) -> Guest {
    let program = fixture("network_calls", &["-pthread"]);
    let path = CString::new(program.as_os_str().as_bytes()).expect("no zero byte");
    let args = args.iter().map(|arg| CString::new(*arg).expect("no zero byte"));
    Guest::new(path.clone()).args(std::iter::once(path).chain(args).collect::<Vec<_>>())
}

fn ends_well(guest: Guest) {
    assert_eq!(guest.run().expect("the guest runs").status, ExitStatus::Exited(0));
}

/// A line without what differs from run to run: ports, addresses of memory.
fn normal(line: &str) -> String {
    let mut shown = String::new();
    let mut rest = line;
    while let Some(at) =
        ["htons(", "0x7", "0x5", "0x6", "127.0.0.1:"].iter().filter_map(|mark| rest.find(mark)).min()
    {
        let (before, from) = rest.split_at(at);
        let hexadecimal = from.starts_with("0x");
        let skip = if hexadecimal { 2 } else { from.find(['(', ':']).map_or(0, |at| at + 1) };
        let (mark, number) = from.split_at(skip);
        let end =
            number.find(|c: char| if hexadecimal { !c.is_ascii_hexdigit() } else { !c.is_ascii_digit() });
        let (number, behind) = number.split_at(end.unwrap_or(number.len()));
        // Small numbers are flags and lengths.
        let stands_for = match number {
            "0" => "0",
            _ if hexadecimal && number.len() < 6 => number,
            _ => "N",
        };
        shown.extend([before, mark, stands_for]);
        rest = behind;
    }
    shown + rest
}

const SHOWN: [&str; 17] = [
    "socket",
    "bind",
    "getsockname",
    "getpeername",
    "connect",
    "accept4",
    "shutdown",
    "sendto",
    "sendmsg",
    "sendmmsg",
    "recvfrom",
    "recvmsg",
    "setsockopt",
    "execve",
    "listen",
    "accept",
    "socketpair",
];

#[test]
fn the_trace_shows_addresses_messages_and_arguments() {
    alone("the_trace_shows_addresses_messages_and_arguments", || {
        let trace = scratch().join("tour");
        ends_well(guest(&["tour"]).trace(std::fs::File::create(&trace).unwrap()));
        let text = std::fs::read_to_string(&trace).unwrap();
        let lines = text.lines().filter(|line| {
            // The shell that is executed makes no such calls.
            let call = line.trim_start_matches(|c: char| c != ']' && line.starts_with('['));
            SHOWN.iter().any(|name| call.trim_start_matches([']', ' ']).starts_with(&format!("{name}(")))
        });
        let pid = std::process::id().to_string();
        let lines: Vec<String> = lines
            .map(|line| line.split_once("] ").map_or(line, |(_, line)| line))
            .map(|line| normal(line).replace(&pid, "PID"))
            .collect();
        insta::assert_snapshot!(lines.join("\n"));
    });
}

/// Notes what calls that return an address have returned, and the calls that take one.
#[derive(Default)]
struct Notes {
    lines: Mutex<Vec<String>>,
}

impl Hook for Notes {
    type TaskState = ();

    fn calls(&self) -> CallSet {
        let returning = [libc::SYS_accept4, libc::SYS_getsockname, libc::SYS_recvfrom, libc::SYS_execve];
        CallSet::taking_socket_addresses().union(CallSet::numbered(returning))
    }

    fn after(&self, (): &mut (), call: &mut Call<'_>) {
        assert_eq!(call.set_socket_address(1, ([127, 0, 0, 1].into(), 1)), Err(ArgError::TooLate));
        for arg in call.args() {
            let shown = match arg.value() {
                ArgValue::SocketAddress(address) => address.to_string(),
                ArgValue::Messages(messages) => {
                    format!("{:?}", messages.iter().map(|message| message.address()).collect::<Vec<_>>())
                }
                ArgValue::Strings(strings) => format!("{strings:?}"),
                ArgValue::Unreadable(errno) => format!("unreadable: {errno:?}"),
                _ => continue,
            };
            let line = format!("{} {}: {}", call.name(), arg.name(), normal(&shown));
            self.lines.lock().unwrap().push(line);
        }
        if call.name() == "accept4" {
            let Some(SocketAddr::V4(peer)) = call.returned_address().and_then(SocketAddress::ip) else {
                panic!("{call:?}")
            };
            // In full, though the guest had no room for it.
            assert_eq!((peer.ip(), peer.port() != 0), (&Ipv4Addr::LOCALHOST, true));
        }
    }
}

#[test]
fn hooks_get_addresses_messages_and_arguments_decoded() {
    alone("hooks_get_addresses_messages_and_arguments_decoded", || {
        let notes = Arc::new(Notes::default());
        ends_well(guest(&["tour"]).hook(Arc::clone(&notes)));
        insta::assert_snapshot!(notes.lines.lock().unwrap().join("\n"));
    });
}

/// Lets nobody send to, or connect to, anything but 127.0.0.1; judges what the call says first.
struct OneAddress;

impl Hook for OneAddress {
    type TaskState = ();

    fn calls(&self) -> CallSet {
        CallSet::taking_socket_addresses().without(CallSet::numbered([libc::SYS_bind]))
    }

    fn before(&self, (): &mut (), call: &mut Call<'_>) -> Verdict {
        let permitted =
            |address: &SocketAddress| address.ip().is_some_and(|address| address.ip() == Ipv4Addr::LOCALHOST);
        let judged = call.args().all(|arg| match arg.value() {
            ArgValue::SocketAddress(address) => permitted(address),
            ArgValue::Messages(messages) => {
                messages.iter().all(|message| message.address().is_some_and(permitted))
            }
            ArgValue::Unreadable(_) => false,
            _ => true,
        });
        if judged { Verdict::Proceed } else { Verdict::Deny(Errno::EACCES) }
    }
}

#[test]
fn an_address_that_changes_while_it_is_judged_is_used_as_judged() {
    alone("an_address_that_changes_while_it_is_judged_is_used_as_judged", || {
        ends_well(guest(&["race", "127.0.0.1", "127.0.0.2", "3000"]).hook(OneAddress));
    });
}

/// Sends connections elsewhere, and changes what is executed and with what.
struct Redirect(SocketAddr);

impl Hook for Redirect {
    type TaskState = ();

    fn calls(&self) -> CallSet {
        CallSet::numbered([libc::SYS_connect, libc::SYS_execve])
    }

    fn before(&self, (): &mut (), call: &mut Call<'_>) -> Verdict {
        assert_eq!(call.set_strings(0, [c"x"]), Err(ArgError::NotStrings));
        if call.name() == "execve" {
            let Some(ArgValue::Strings(args)) = call.arg(1).map(|args| args.value()) else {
                panic!("{call:?}")
            };
            let mut args = args.to_vec();
            args.push(c"added".to_owned());
            assert_eq!(call.set_strings(1, args), Ok(()));
            assert_eq!(call.set_strings(2, [c"SEEN=by the hook"]), Ok(()));
            assert_eq!(call.set_socket_address(1, self.0), Err(ArgError::NotASocketAddress));
        } else {
            assert_eq!(call.set_socket_address(1, self.0), Ok(()));
            // A new length means that the address is read again, which is now as the guest has it.
            assert_eq!(call.set_raw(2, 16), Ok(()));
            assert_eq!(call.set_socket_address(1, self.0), Ok(()));
        }
        Verdict::Proceed
    }

    fn after(&self, (): &mut (), call: &mut Call<'_>) {
        assert!(matches!(call.end(), Some(CallEnd::Returned(Ok(0)))), "{call:?}");
    }
}

#[test]
fn a_replaced_address_is_connected_to_and_replaced_strings_are_executed() {
    alone("a_replaced_address_is_connected_to_and_replaced_strings_are_executed", || {
        let program = fixture("network_calls", &["-pthread"]);
        let elsewhere = UdpSocket::bind((IpAddr::from([127, 0, 0, 1]), 0)).unwrap().local_addr().unwrap();
        let out = scratch().join("redirected");
        let script = format!(
            "{} redirected 9 > {out}; exec /bin/sh -c 'echo $0 $SEEN >> {out}'",
            program.display(),
            out = out.display()
        );
        // The shell's first program has three arguments, which one more would not suit; `redirected` ignores its own.
        let script = script.replace("redirected 9", "redirected");
        let args = [c"sh".to_owned(), c"-c".to_owned(), CString::new(script).unwrap()];
        ends_well(Guest::new(c"/bin/sh").args(args).hook(Redirect(elsewhere)));
        let written = std::fs::read_to_string(&out).unwrap();
        assert_eq!(written, format!("{}\nadded by the hook\n", elsewhere.port()));
    });
}
