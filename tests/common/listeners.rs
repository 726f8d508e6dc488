//! Sockets of the host that a guest without network must not reach.

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// One socket of each kind; none of them waits.
pub struct Listeners {
    tcp: TcpListener,
    by_name: UnixListener,
    by_path: UnixListener,
    datagrams_by_name: UnixDatagram,
    datagrams_by_path: UnixDatagram,
    name: String,
    path: PathBuf,
}

impl Listeners {
    /// Files are made in the directory.
    pub fn new(directory: &Path) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("systrap-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = directory.join(format!("{name}.sock"));
        let address =
            |suffix: &str| SocketAddr::from_abstract_name(format!("{name}{suffix}")).expect("a name");
        let listeners = Self {
            tcp: TcpListener::bind("127.0.0.1:0").expect("a port"),
            by_name: UnixListener::bind_addr(&address("")).expect("a name"),
            by_path: UnixListener::bind(&path).expect("a path"),
            datagrams_by_name: UnixDatagram::bind_addr(&address("-datagram")).expect("a name"),
            datagrams_by_path: UnixDatagram::bind(path.with_extension("datagram")).expect("a path"),
            name,
            path,
        };
        listeners.tcp.set_nonblocking(true).expect("set");
        listeners.by_name.set_nonblocking(true).expect("set");
        listeners.by_path.set_nonblocking(true).expect("set");
        listeners.datagrams_by_name.set_nonblocking(true).expect("set");
        listeners.datagrams_by_path.set_nonblocking(true).expect("set");
        listeners
    }

    /// What the guest is told.
    pub fn environment(&self) -> [(&'static str, String); 5] {
        let path = |path: &Path| path.to_str().expect("a plain path").to_owned();
        [
            ("HOST_PORT", self.tcp.local_addr().expect("bound").port().to_string()),
            ("HOST_ABSTRACT", self.name.clone()),
            ("HOST_ABSTRACT_DATAGRAM", format!("{}-datagram", self.name)),
            ("HOST_PATH", path(&self.path)),
            ("HOST_PATH_DATAGRAM", path(&self.path.with_extension("datagram"))),
        ]
    }

    /// A descriptor that would be a way out: of a TCP connection to somebody else.
    pub fn tcp_client(&self) -> TcpStream {
        let other = TcpListener::bind("127.0.0.1:0").expect("a port");
        TcpStream::connect(other.local_addr().expect("bound")).expect("a connection")
    }

    /// Which of them somebody has connected or sent to.
    pub fn touched(&self) -> Vec<&'static str> {
        let mut byte = [0];
        [
            ("TCP", self.tcp.accept().is_ok()),
            ("an abstract name", self.by_name.accept().is_ok()),
            ("a path", self.by_path.accept().is_ok()),
            ("datagrams to an abstract name", self.datagrams_by_name.recv(&mut byte).is_ok()),
            ("datagrams to a path", self.datagrams_by_path.recv(&mut byte).is_ok()),
        ]
        .into_iter()
        .filter_map(|(what, touched)| touched.then_some(what))
        .collect()
    }

    /// Nobody has.
    pub fn assert_untouched(&self, after: &str) {
        assert_eq!(self.touched(), [""; 0], "{after} reached the host");
    }
}

/// Sends one byte with a descriptor.
pub fn send_descriptor(through: &UnixStream, descriptor: &impl AsFd) {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let descriptors = [descriptor.as_fd().as_raw_fd()];
    let part = [std::io::IoSlice::new(b"d")];
    let along = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(through.as_raw_fd(), &part, &along, MsgFlags::empty(), None).expect("sent");
}
