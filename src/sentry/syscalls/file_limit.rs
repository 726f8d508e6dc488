//! `RLIMIT_FSIZE`: how far a guest may make files grow (mm/filemap.c `generic_write_checks`, fs/attr.c
//! `inode_newsize_ok`).

use crate::sentry::errno::Errno;
use crate::sentry::file::{File, FileType, StatView};
use crate::sentry::host;
use crate::sentry::signals::SigInfo;
use crate::sentry::task::Task;
use std::os::fd::{AsFd as _, BorrowedFd};

impl Task {
    /// `EFBIG`, and the signal that goes with it.
    fn too_large(&mut self) -> Errno {
        let _ = self.signal_self(SigInfo::from_user(
            libc::SIGXFSZ,
            libc::SI_USER,
            self.process.pid,
            self.credentials().user.real,
        ));
        Errno::EFBIG
    }

    /// How much of a write of `len` bytes the limit leaves; `offset` is where, if not at the file's own position.
    pub(super) fn within_file_limit(
        &mut self,
        file: &File,
        offset: Option<i64>,
        len: usize,
    ) -> Result<usize, Errno> {
        let limit = self.process.current_limits().file_size();
        if limit == libc::RLIM_INFINITY || len == 0 || file.file_type() != FileType::Regular {
            return Ok(len);
        }
        let mut stat = [0; 144];
        host::fstat(file.as_fd(), &mut stat)?;
        let stat = StatView(&stat);
        if stat.mode() & libc::S_IFMT != libc::S_IFREG {
            return Ok(len);
        }
        let appends = host::fcntl(file.as_fd(), libc::F_GETFL, 0)? & libc::O_APPEND as usize != 0;
        let position = match offset {
            _ if appends => stat.size(),
            Some(offset) => offset as u64,
            None => host::lseek(file.as_fd(), 0, libc::SEEK_CUR)? as u64,
        };
        match limit.checked_sub(position) {
            None | Some(0) => Err(self.too_large()),
            Some(room) => Ok(usize::try_from(room).map_or(len, |room| room.min(len))),
        }
    }

    /// Whether a file may be made so large by a call that sets or reserves its size.
    pub(super) fn check_new_size(&mut self, file: BorrowedFd<'_>, size: i64) -> Result<(), Errno> {
        let limit = self.process.current_limits().file_size();
        let Some(size) = u64::try_from(size).ok().filter(|size| *size > limit) else { return Ok(()) };
        let mut stat = [0; 144];
        host::newfstatat(file, c"", &mut stat, libc::AT_EMPTY_PATH)?;
        let stat = StatView(&stat);
        if stat.mode() & libc::S_IFMT == libc::S_IFREG && stat.size() < size {
            return Err(self.too_large());
        }
        Ok(())
    }
}
