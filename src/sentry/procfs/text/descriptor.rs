//! `/proc/PID/fdinfo/FD`: the host's, with the guest's close-on-exec flag.

use super::super::subject::Subject;
use crate::sentry::errno::Errno;
use crate::sentry::process::lock;
use std::os::fd::{AsFd as _, AsRawFd as _};

pub(super) fn info(subject: &Subject, fd: i32) -> Result<Vec<u8>, Errno> {
    let files = subject.files().ok_or(Errno::ENOENT)?;
    let (file, cloexec) = {
        let files = lock(&files);
        (files.get(fd).map_err(|_| Errno::ENOENT)?, files.cloexec(fd).map_err(|_| Errno::ENOENT)?)
    };
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_fd().as_raw_fd()))?;
    let kernel = &subject.process.kernel;
    Ok((with_flag(&text, cloexec) + &file.info(&kernel.tree())).into_bytes())
}

/// Every descriptor of the host's is close-on-exec; the guest's own flag shows instead.
fn with_flag(text: &str, cloexec: bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        match line.strip_prefix("flags:\t").and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok()) {
            Some(flags) => {
                let bit = libc::O_CLOEXEC as u32;
                let flags = if cloexec { flags | bit } else { flags & !bit };
                shown.push_str(&format!("flags:\t0{flags:o}\n"));
            }
            None => shown.push_str(line),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_is_the_guests() {
        let host = "pos:\t5\nflags:\t02100002\nmnt_id:\t9\n";
        assert_eq!(with_flag(host, false), "pos:\t5\nflags:\t0100002\nmnt_id:\t9\n");
        assert_eq!(with_flag(host, true), host);
    }
}
