//! What embedders may rely on of the public types: that they cross threads, are shown by `Debug`, and that errors are
//! errors that can be passed on.

use std::error::Error as StdError;
use std::fmt::{Debug, Display};
use std::hash::Hash;
use systrap::{seccomp, *};

fn sends<T: Send + Debug + 'static>() {}
fn shares<T: Send + Sync + Debug + 'static>() {}
fn is_handle<T: Send + Sync + Clone + Debug + 'static>() {}
fn is_value<T: Send + Sync + Copy + Eq + Debug + 'static>() {}
fn is_key<T: Send + Sync + Copy + Eq + Hash + Debug + 'static>() {}
fn is_error<T: StdError + Display + Send + Sync + 'static>() {}

#[test]
fn the_platforms_types_are_as_promised() {
    is_handle::<Systrap>();
    is_handle::<AddressSpace>();
    is_handle::<Interrupter>();
    sends::<Context>();
    is_handle::<SentArguments>();
    is_value::<Options>();
    is_value::<PassedCalls>();
    is_value::<Registers>();
    is_value::<Stats>();
    is_value::<EagerStats>();
    is_value::<Vdso>();
    is_value::<Event>();
    is_value::<Syscall>();
    is_value::<Signal>();
    is_value::<Made>();
    is_value::<Executed>();
    is_value::<StubExit>();
    is_key::<GuestAddr>();
    is_key::<Protection>();
    is_key::<Sharing>();
    is_key::<Advice>();
    is_key::<Patching>();
    is_key::<Arch>();
    is_key::<Entry>();
    is_key::<AccessType>();
    shares::<seccomp::SupervisorRow>();
    shares::<seccomp::Row>();
    is_error::<Error>();
    is_error::<SwitchError>();
    is_error::<MapError>();
    is_error::<CopyError>();
}

#[cfg(feature = "sentry")]
#[test]
fn the_sentrys_types_are_as_promised() {
    use systrap::sentry::*;
    sends::<Guest>();
    shares::<Outcome>();
    is_handle::<Mounts>();
    is_handle::<SupervisorFilter>();
    is_handle::<CallCounts>();
    is_value::<CallSet>();
    is_key::<Errno>();
    is_key::<TaskId>();
    is_key::<SocketAddress>();
    is_key::<Access>();
    is_value::<Network>();
    is_value::<ArgValue<'static>>();
    is_value::<OutgoingMessage>();
    is_value::<OpenHow>();
    is_value::<Verdict>();
    is_value::<CallEnd>();
    is_value::<DeliveredSignal>();
    is_value::<ExitStatus>();
    is_value::<Support>();
    is_error::<Errno>();
    is_error::<RunError>();
    is_error::<LoadError>();
    is_error::<MountError>();
    is_error::<ArgError>();
    is_error::<UnknownCall>();
}

#[test]
fn errors_name_their_cause_once_more_for_programs() {
    // A range that no guest may map, and the errno that a guest gets for it.
    let error = MapError::BadRange { addr: GuestAddr::new(1), len_bytes: 0, limit: GuestAddr::new(0x1000) };
    assert_eq!(
        (error.to_string().as_str(), error.errno()),
        ("0x1+0x0 is not a page-aligned range below 0x1000", libc::EINVAL)
    );
    let source = std::io::Error::from_raw_os_error(libc::EAGAIN);
    let error = SwitchError::from(Error::Host { what: "clone", source, remedy: "" });
    let cause = error.source().and_then(<dyn StdError>::downcast_ref::<std::io::Error>);
    assert_eq!(cause.and_then(std::io::Error::raw_os_error), Some(libc::EAGAIN));
}
