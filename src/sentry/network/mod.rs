//! What a guest can reach over sockets.
//!
//! With [`Network::None`] only Unix sockets are left, and they lead to other processes of the same guest only:
//!
//! * No host socket of the guest is bound to a name that anybody else could use. [`names`] gives each bound socket a
//!   place of its own and takes the name away at once; what is left is a descriptor of the supervisor's, through which
//!   the guest's own connections and messages go. A name that is not in the table leads nowhere.
//! * A socket that the guest was started with, or that came through one, stays what it is: it can be read and written,
//!   but not bound, connected, listened at or passed on, and it brings no descriptors in ([`check_own`]).
//!
//! So every connection has two ends of the guest's, and everything that is passed through one comes from the guest.

mod names;
mod pass_credentials;

pub(crate) use names::{Bound, Name, PrivateNames};
use pass_credentials::{PassCredentials, UnderWay};

use super::errno::Errno;
use super::file::File;
use super::kernel::Kernel;
use super::socket::Socket;
use super::task::Task;

/// What a guest can reach over sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Network {
    /// What the supervisor can: the host's network and its Unix sockets.
    #[default]
    Host,
    /// Only other processes of the guest, through Unix sockets. Sockets of all other families fail with
    /// `EAFNOSUPPORT`, as on a kernel that was built without them; a Unix socket that is bound outside the guest refuses
    /// connections (`ECONNREFUSED`); what the guest binds is not to be reached from outside, in the file system or in the
    /// namespace of abstract names. Sockets that the guest is started with can be read and written, and are otherwise
    /// `EACCES`. There are no interfaces, and no `/proc/net`.
    None,
}

/// The private network of a guest that has no other; `None` for one with the host's.
pub(crate) fn private(kernel: &Kernel) -> Option<&PrivateNames> {
    kernel.private_names.as_ref()
}

/// Whether a family may be asked for; the rest is what the host says.
pub(crate) fn check_family(kernel: &Kernel, domain: i32) -> Result<(), Errno> {
    match private(kernel) {
        Some(_) if domain != libc::AF_UNIX => Err(Errno::EAFNOSUPPORT),
        _ => Ok(()),
    }
}

/// What changes where a socket leads is for the guest's own sockets.
pub(crate) fn check_own(kernel: &Kernel, socket: &Socket) -> Result<(), Errno> {
    if is_foreign(kernel, socket) { Err(Errno::EACCES) } else { Ok(()) }
}

/// To be held while the host connects a socket or sends to an address, see [`pass_credentials`].
pub(crate) fn before_naming_another<'a>(
    kernel: &'a Kernel,
    task: &Task,
    file: &File,
) -> Result<Option<UnderWay<'a>>, Errno> {
    private(kernel).map(|names| names.before_naming_another(task, file)).transpose()
}

/// Whether a socket is one of the outside, in a guest that has no network.
pub(crate) fn is_foreign(kernel: &Kernel, socket: &Socket) -> bool {
    private(kernel).is_some() && !socket.is_guests()
}
