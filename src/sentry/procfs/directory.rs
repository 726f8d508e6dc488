//! Listing the directories of the guest's `/proc`.

use super::node::{Entry, Node, Owner};
use super::walk;
use crate::sentry::errno::Errno;
use crate::sentry::network;
use crate::sentry::process::lock;
use crate::sentry::task::Task;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{DirEntryExt as _, FileTypeExt as _};

/// The two layouts of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordFormat {
    /// `getdents64`.
    New,
    /// `getdents`.
    Old,
}

/// One line of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// Its place: the same at every reading, and ascending.
    pub(super) place: u64,
    pub(super) inode: u64,
    pub(super) name: Vec<u8>,
    pub(super) kind: u8,
}

/// Where the process ids of `/proc` begin, after all other names.
const FIRST_PID: u64 = 1 << 20;

impl Task {
    /// All entries of a directory, in the order of their places.
    pub(super) fn list(&self, node: Node) -> Result<Vec<Record>, Errno> {
        let parent = node.parent().map_or(1, |parent| parent.inode());
        let mut records = vec![
            Record { place: 0, inode: node.inode(), name: b".".to_vec(), kind: libc::DT_DIR },
            Record { place: 1, inode: parent, name: b"..".to_vec(), kind: libc::DT_DIR },
        ];
        let mut add = |place: u64, node: Node, name: String, kind| {
            records.push(Record { place, inode: node.inode(), name: name.into_bytes(), kind });
        };
        match node {
            Node::Root => {
                records.extend(self.list_root()?);
                records.sort_by_key(|record| record.place);
            }
            Node::Owned(owner, Entry::Directory) => {
                self.subject(owner).map_err(|_| Errno::ENOENT)?;
                for (place, (name, entry)) in (2..).zip(owner.names()) {
                    if name == "net" && network::private(self.kernel()).is_some() {
                        continue;
                    }
                    add(place, Node::Owned(owner, entry), name.to_owned(), entry.kind());
                }
            }
            Node::Owned(owner, Entry::Tasks) => {
                let subject = self.subject(owner).map_err(|_| Errno::ENOENT)?;
                for tid in subject.tids() {
                    let thread = Node::Owned(Owner::thread(owner.pid, tid), Entry::Directory);
                    add(2 + tid as u64, thread, tid.to_string(), libc::DT_DIR);
                }
            }
            Node::Owned(owner, entry @ (Entry::Descriptors | Entry::DescriptorInfos)) => {
                let subject = self.subject(owner).map_err(|_| Errno::ENOENT)?;
                // A process that has ended has no descriptors.
                let numbers: Vec<i32> =
                    subject.files().map(|files| lock(&files).numbers().collect()).unwrap_or_default();
                for fd in numbers {
                    let each = if entry == Entry::Descriptors {
                        Entry::Descriptor(fd)
                    } else {
                        Entry::DescriptorInfo(fd)
                    };
                    add(2 + fd as u64, Node::Owned(owner, each), fd.to_string(), each.kind());
                }
            }
            _ => return Err(Errno::ENOTDIR),
        }
        Ok(records)
    }

    /// The host's names, its processes but for the supervisor's own, and the guest's processes.
    fn list_root(&self) -> Result<Vec<Record>, Errno> {
        let mut hidden = self.kernel().platform.stub_pids();
        hidden.push(std::process::id() as i32);
        let mut records = Vec::new();
        for (index, entry) in (2_u64..).zip(std::fs::read_dir("/proc")?.flatten()) {
            let name = entry.file_name().into_vec();
            let pid = walk::number(&name);
            let hidden_name = name == b"net" && network::private(self.kernel()).is_some();
            if hidden_name || pid.is_some_and(|pid| hidden.contains(&pid)) {
                continue;
            }
            let kind = match entry.file_type() {
                Ok(kind) if kind.is_dir() => libc::DT_DIR,
                Ok(kind) if kind.is_symlink() => libc::DT_LNK,
                Ok(kind) if kind.is_file() => libc::DT_REG,
                Ok(kind) if kind.is_char_device() => libc::DT_CHR,
                _ => libc::DT_UNKNOWN,
            };
            let place = pid.map_or(index, |pid| FIRST_PID + pid as u64);
            records.push(Record { place, inode: entry.ino(), name, kind });
        }
        for pid in self.kernel().tree().nodes().map(|node| node.process.pid) {
            let node = Node::Owned(Owner::process(pid), Entry::Directory);
            let name = pid.to_string().into_bytes();
            let place = FIRST_PID + pid as u64;
            records.push(Record { place, inode: node.inode(), name, kind: libc::DT_DIR });
        }
        Ok(records)
    }
}

/// Fills a buffer with the records from `position` on, which it advances; `EINVAL` if not even one fits.
pub(super) fn fill(
    records: &[Record],
    position: &mut u64,
    format: RecordFormat,
    buf: &mut [u8],
) -> Result<usize, Errno> {
    /// Inode, place of the next, length; the new format has the kind here, the old one at the end.
    const HEAD: usize = 18;
    let mut filled = 0;
    for record in records.iter().filter(|record| record.place >= *position).collect::<Vec<_>>() {
        let len = (HEAD + 1 + record.name.len() + 1).next_multiple_of(8);
        let Some(to) = buf.get_mut(filled..filled + len) else {
            return if filled == 0 { Err(Errno::EINVAL) } else { Ok(filled) };
        };
        *position = record.place + 1;
        to.fill(0);
        to[..8].copy_from_slice(&record.inode.to_ne_bytes());
        to[8..16].copy_from_slice(&position.to_ne_bytes());
        to[16..18].copy_from_slice(&(len as u16).to_ne_bytes());
        let name = match format {
            RecordFormat::New => HEAD + 1,
            RecordFormat::Old => HEAD,
        };
        to[name..name + record.name.len()].copy_from_slice(&record.name);
        to[if format == RecordFormat::New { HEAD } else { len - 1 }] = record.kind;
        filled += len;
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        (0..20_u64)
            .map(|place| Record {
                place: place * place,
                inode: place + 100,
                name: "n".repeat(place as usize + 1).into_bytes(),
                kind: libc::DT_REG,
            })
            .collect()
    }

    fn read_all(format: RecordFormat, size: usize) -> Vec<(u64, Vec<u8>, u8)> {
        let (mut position, mut found) = (0, Vec::new());
        loop {
            let mut buf = vec![0xff; size];
            let len = fill(&records(), &mut position, format, &mut buf).unwrap();
            if len == 0 {
                return found;
            }
            let mut rest = &buf[..len];
            while !rest.is_empty() {
                let length = u16::from_ne_bytes([rest[16], rest[17]]) as usize;
                let (start, kind) = match format {
                    RecordFormat::New => (19, rest[18]),
                    RecordFormat::Old => (18, rest[length - 1]),
                };
                let name: Vec<u8> = rest[start..].iter().copied().take_while(|byte| *byte != 0).collect();
                found.push((u64::from_ne_bytes(rest[..8].try_into().unwrap()), name, kind));
                rest = &rest[length..];
            }
        }
    }

    #[test]
    fn every_record_is_read_once_whatever_the_buffer() {
        let expected: Vec<_> =
            records().into_iter().map(|record| (record.inode, record.name, record.kind)).collect();
        for format in [RecordFormat::New, RecordFormat::Old] {
            for size in [40, 48, 100, 4096] {
                assert_eq!(read_all(format, size), expected, "{format:?} {size}");
            }
        }
    }

    #[test]
    fn a_buffer_too_small_for_one_record_is_refused() {
        let mut position = 0;
        assert_eq!(fill(&records(), &mut position, RecordFormat::New, &mut [0; 23]), Err(Errno::EINVAL));
        assert_eq!(position, 0);
    }
}
