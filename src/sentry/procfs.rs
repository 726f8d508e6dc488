//! The parts of `/proc/self` that have to show the guest and not the supervisor.
//!
//! The guest's process id is the supervisor's, so most of `/proc/self` can be the host's. What would show the
//! supervisor's program, memory or descriptors is recognised by its path.

use super::errno::Errno;
use super::file::{File, VirtualDirectory};
use super::guest_memory::GuestMemory;
use super::host;
use super::task::Task;
use std::ffi::{CStr, CString};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;

/// A path that the sentry answers itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Special<'a> {
    /// The link to the executable.
    Executable,
    /// A file whose text the sentry writes.
    Text(Text),
    /// The directory of descriptors.
    FdDirectory,
    /// A descriptor, with what follows it in the path (empty, or starting with a slash).
    Descriptor(i32, &'a [u8]),
    /// What is known of a descriptor (`fdinfo`).
    DescriptorInfo(i32),
}

/// A file whose text the sentry writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Text {
    Maps,
    CommandLine,
    Auxv,
    Environ,
    Comm,
}

/// The path under which the descriptor directory is known.
pub(crate) const FD_DIRECTORY: &str = "/proc/self/fd";

/// Recognises a special path of the process `pid`.
pub(crate) fn recognise(path: &[u8], pid: i32) -> Option<Special<'_>> {
    if let Some(rest) = path.strip_prefix(b"/dev/") {
        return match rest {
            b"stdin" => Some(Special::Descriptor(0, &[])),
            b"stdout" => Some(Special::Descriptor(1, &[])),
            b"stderr" => Some(Special::Descriptor(2, &[])),
            b"fd" | b"fd/" => Some(Special::FdDirectory),
            _ => descriptor(rest.strip_prefix(b"fd/")?),
        };
    }
    let rest = path.strip_prefix(b"/proc/")?;
    let split = rest.iter().position(|byte| *byte == b'/')?;
    let (who, rest) = (&rest[..split], &rest[split + 1..]);
    let mine = who == b"self" || who == b"thread-self" || who == pid.to_string().as_bytes();
    if !mine {
        return None;
    }
    let own_task = format!("task/{pid}/");
    let rest = rest.strip_prefix(own_task.as_bytes()).unwrap_or(rest);
    match rest {
        b"exe" => Some(Special::Executable),
        b"maps" => Some(Special::Text(Text::Maps)),
        b"cmdline" => Some(Special::Text(Text::CommandLine)),
        b"auxv" => Some(Special::Text(Text::Auxv)),
        b"environ" => Some(Special::Text(Text::Environ)),
        b"comm" => Some(Special::Text(Text::Comm)),
        b"fd" | b"fd/" => Some(Special::FdDirectory),
        _ => match rest.strip_prefix(b"fdinfo/").map(descriptor) {
            Some(Some(Special::Descriptor(fd, b""))) => Some(Special::DescriptorInfo(fd)),
            Some(_) => None,
            None => descriptor(rest.strip_prefix(b"fd/")?),
        },
    }
}

fn descriptor(rest: &[u8]) -> Option<Special<'_>> {
    let split = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
    let number = std::str::from_utf8(&rest[..split]).ok()?;
    // As the kernel: no sign, no leading zero.
    let plain =
        number.bytes().all(|byte| byte.is_ascii_digit()) && (number == "0" || !number.starts_with('0'));
    plain.then(|| number.parse().ok()).flatten().map(|fd| Special::Descriptor(fd, &rest[split..]))
}

/// A file with that text in it.
fn text_file(bytes: &[u8]) -> Result<File, Errno> {
    let memory = host::memfd_create(c"proc", libc::MFD_CLOEXEC)?;
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        written += host::pwrite64(memory.as_fd(), rest, written as i64)?;
    }
    Ok(File::new(memory))
}

impl Task {
    /// The host path that stands for a special one; `follow` as the call follows a last symbolic link.
    pub(crate) fn host_path(&self, special: Special<'_>, follow: bool) -> Result<CString, Errno> {
        let path = match special {
            Special::Executable if follow => {
                self.process.program().executable.as_os_str().as_bytes().to_vec()
            }
            Special::Executable => b"/proc/self/exe".to_vec(),
            Special::Text(Text::Maps) => b"/proc/self/maps".to_vec(),
            Special::Text(_) => b"/proc/self/cmdline".to_vec(),
            Special::FdDirectory => FD_DIRECTORY.as_bytes().to_vec(),
            Special::DescriptorInfo(fd) => {
                self.file(fd).map_err(|_| Errno::ENOENT)?.host_info_path().into_bytes()
            }
            Special::Descriptor(fd, rest) => {
                let file = self.file(fd).map_err(|_| Errno::ENOENT)?;
                let mut path = file.host_proc_path().into_bytes();
                path.extend_from_slice(rest);
                path
            }
        };
        CString::new(path).map_err(|_| Errno::ENOENT)
    }

    /// Opens a special path; `None` if the host path that stands for it is to be opened.
    pub(crate) fn open_special(&self, special: Special<'_>, flags: i32) -> Result<Option<File>, Errno> {
        match special {
            Special::Text(text) => {
                if flags & libc::O_ACCMODE != libc::O_RDONLY && text != Text::Comm {
                    return Err(Errno::EACCES);
                }
                text_file(&self.special_text(text)).map(Some)
            }
            Special::DescriptorInfo(fd) => {
                let file = self.file(fd).map_err(|_| Errno::ENOENT)?;
                let mut text = std::fs::read(file.host_info_path())?;
                text.extend_from_slice(file.info(&self.kernel().tree()).as_bytes());
                text_file(&text).map(Some)
            }
            Special::FdDirectory => {
                let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
                let directory =
                    host::openat(self.directory(libc::AT_FDCWD)?.as_fd(), c"/proc/self/fd", flags, 0)?;
                Ok(Some(File::virtual_directory(directory, VirtualDirectory::new(FD_DIRECTORY))))
            }
            Special::Executable | Special::Descriptor(..) => Ok(None),
        }
    }

    fn special_text(&self, text: Text) -> Vec<u8> {
        let memory: &dyn GuestMemory = self.memory();
        match text {
            Text::Maps => self.mm.proc_maps(self.kernel().platform.vdso()).into_bytes(),
            Text::CommandLine => {
                let image = self.process.program().image.clone();
                image.command_line(memory)
            }
            Text::Environ => {
                let image = self.process.program().image.clone();
                image.environ(memory)
            }
            Text::Auxv => self.process.program().image.auxv.clone(),
            Text::Comm => {
                let name = self.handle.name();
                let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
                [name.to_bytes(), b"\n"].concat()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_paths() {
        let special = |path: &'static str| recognise(path.as_bytes(), 42);
        assert_eq!(special("/proc/self/exe"), Some(Special::Executable));
        assert_eq!(special("/proc/42/exe"), Some(Special::Executable));
        assert_eq!(special("/proc/42/task/42/maps"), Some(Special::Text(Text::Maps)));
        assert_eq!(special("/proc/43/exe"), None);
        assert_eq!(special("/proc/self"), None);
        assert_eq!(special("/proc/self/status"), None);
        assert_eq!(special("/proc/self/fd/"), Some(Special::FdDirectory));
        assert_eq!(special("/proc/self/fd/10"), Some(Special::Descriptor(10, b"")));
        assert_eq!(special("/proc/self/fdinfo/10"), Some(Special::DescriptorInfo(10)));
        assert_eq!(special("/proc/self/fdinfo/10/x"), None);
        assert_eq!(special("/dev/fd/3/x"), Some(Special::Descriptor(3, b"/x")));
        assert_eq!(special("/dev/stdin"), Some(Special::Descriptor(0, b"")));
        assert_eq!(special("/dev/null"), None);
        assert_eq!(special("/proc/self/fd/-1"), None);
        assert_eq!(special("/proc/self/fd/01"), None);
        assert_eq!(special("/proc/self/fd/99999999999"), None);
    }
}
