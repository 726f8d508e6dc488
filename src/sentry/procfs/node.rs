//! The names of the guest's `/proc`: what the sentry makes up itself, and what of the host's shows the same.

use std::hash::{DefaultHasher, Hash, Hasher};

/// Whose directory: `/proc/PID`, or `/proc/PID/task/TID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Owner {
    pub(crate) pid: i32,
    /// Below `task`: the thread.
    pub(crate) tid: Option<i32>,
}

impl Owner {
    pub(crate) fn process(pid: i32) -> Self {
        Self { pid, tid: None }
    }

    pub(crate) fn thread(pid: i32, tid: i32) -> Self {
        Self { pid, tid: Some(tid) }
    }
}

/// Something in the guest's `/proc` that is not simply the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Node {
    /// `/proc` itself.
    Root,
    /// `/proc/self`.
    SelfLink,
    /// `/proc/thread-self`.
    ThreadSelfLink,
    /// `/proc/meminfo`, where the guest may not have all of it.
    MemoryInfo,
    /// What belongs to a process or thread of the guest.
    Owned(Owner, Entry),
}

/// What is in the directory of a process or thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Entry {
    /// The directory itself.
    Directory,
    /// `task`.
    Tasks,
    /// `fd`.
    Descriptors,
    /// `fdinfo`.
    DescriptorInfos,
    /// A link in `fd`.
    Descriptor(i32),
    /// A file in `fdinfo`.
    DescriptorInfo(i32),
    /// A link to a file or directory.
    Link(Link),
    /// A file whose text the sentry writes.
    Text(Text),
    /// What the host shows of the supervisor is true of every guest process: namespaces, mounts, cgroups.
    Host(&'static str),
}

/// The links in a process's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Link {
    Executable,
    WorkingDirectory,
    Root,
}

/// The files whose text the sentry writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Text {
    Auxv,
    Children,
    CommandLine,
    Comm,
    CoredumpFilter,
    Environ,
    Io,
    Limits,
    Maps,
    OomAdj,
    OomScore,
    OomScoreAdj,
    Personality,
    Sched,
    SchedStat,
    Smaps,
    SmapsRollup,
    Stat,
    Statm,
    Status,
    Syscall,
    TimerSlack,
    WaitChannel,
}

/// Where a name is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Both,
    /// Only `/proc/PID`.
    Process,
    /// Only `/proc/PID/task/TID`.
    Thread,
}

/// All names, in the order in which a directory lists them.
const NAMES: &[(&str, Entry, Where)] = &[
    ("task", Entry::Tasks, Where::Process),
    ("fd", Entry::Descriptors, Where::Both),
    ("fdinfo", Entry::DescriptorInfos, Where::Both),
    ("ns", Entry::Host("ns"), Where::Both),
    ("net", Entry::Host("net"), Where::Both),
    ("environ", Entry::Text(Text::Environ), Where::Both),
    ("auxv", Entry::Text(Text::Auxv), Where::Both),
    ("status", Entry::Text(Text::Status), Where::Both),
    ("personality", Entry::Text(Text::Personality), Where::Both),
    ("limits", Entry::Text(Text::Limits), Where::Both),
    ("sched", Entry::Text(Text::Sched), Where::Both),
    ("comm", Entry::Text(Text::Comm), Where::Both),
    ("syscall", Entry::Text(Text::Syscall), Where::Both),
    ("cmdline", Entry::Text(Text::CommandLine), Where::Both),
    ("stat", Entry::Text(Text::Stat), Where::Both),
    ("statm", Entry::Text(Text::Statm), Where::Both),
    ("maps", Entry::Text(Text::Maps), Where::Both),
    ("children", Entry::Text(Text::Children), Where::Thread),
    ("cwd", Entry::Link(Link::WorkingDirectory), Where::Both),
    ("root", Entry::Link(Link::Root), Where::Both),
    ("exe", Entry::Link(Link::Executable), Where::Both),
    ("mounts", Entry::Host("mounts"), Where::Both),
    ("mountinfo", Entry::Host("mountinfo"), Where::Both),
    ("mountstats", Entry::Host("mountstats"), Where::Process),
    ("smaps", Entry::Text(Text::Smaps), Where::Both),
    ("smaps_rollup", Entry::Text(Text::SmapsRollup), Where::Both),
    ("wchan", Entry::Text(Text::WaitChannel), Where::Both),
    ("schedstat", Entry::Text(Text::SchedStat), Where::Both),
    ("cpuset", Entry::Host("cpuset"), Where::Both),
    ("cgroup", Entry::Host("cgroup"), Where::Both),
    ("oom_score", Entry::Text(Text::OomScore), Where::Both),
    ("oom_adj", Entry::Text(Text::OomAdj), Where::Both),
    ("oom_score_adj", Entry::Text(Text::OomScoreAdj), Where::Both),
    ("loginuid", Entry::Host("loginuid"), Where::Both),
    ("sessionid", Entry::Host("sessionid"), Where::Both),
    ("coredump_filter", Entry::Text(Text::CoredumpFilter), Where::Process),
    ("io", Entry::Text(Text::Io), Where::Both),
    ("uid_map", Entry::Host("uid_map"), Where::Both),
    ("gid_map", Entry::Host("gid_map"), Where::Both),
    ("projid_map", Entry::Host("projid_map"), Where::Both),
    ("setgroups", Entry::Host("setgroups"), Where::Both),
    ("timerslack_ns", Entry::Text(Text::TimerSlack), Where::Process),
];

impl Owner {
    fn has(self, place: Where) -> bool {
        match place {
            Where::Both => true,
            Where::Process => self.tid.is_none(),
            Where::Thread => self.tid.is_some(),
        }
    }

    /// The names in the directory.
    pub(crate) fn names(self) -> impl Iterator<Item = (&'static str, Entry)> {
        NAMES.iter().filter(move |(_, _, place)| self.has(*place)).map(|(name, entry, _)| (*name, *entry))
    }

    pub(crate) fn entry(self, name: &[u8]) -> Option<Entry> {
        self.names().find(|(known, _)| known.as_bytes() == name).map(|(_, entry)| entry)
    }

    /// The path of the directory, as the guest names it.
    fn path(self) -> String {
        match self.tid {
            None => format!("/proc/{}", self.pid),
            Some(tid) => format!("/proc/{}/task/{tid}", self.pid),
        }
    }
}

impl Entry {
    fn name(self) -> String {
        match self {
            Entry::Directory => String::new(),
            Entry::Descriptor(fd) => format!("fd/{fd}"),
            Entry::DescriptorInfo(fd) => format!("fdinfo/{fd}"),
            Entry::Host(name) => name.to_owned(),
            other => {
                let found = NAMES.iter().find(|(_, entry, _)| *entry == other);
                found.map(|(name, _, _)| (*name).to_owned()).unwrap_or_default()
            }
        }
    }

    /// The `d_type` of its record in a directory.
    pub(crate) fn kind(self) -> u8 {
        match self {
            Entry::Directory | Entry::Tasks | Entry::Descriptors | Entry::DescriptorInfos => libc::DT_DIR,
            Entry::Host("ns" | "net") => libc::DT_DIR,
            Entry::Descriptor(_) | Entry::Link(_) => libc::DT_LNK,
            Entry::DescriptorInfo(_) | Entry::Text(_) | Entry::Host(_) => libc::DT_REG,
        }
    }
}

impl Node {
    pub(crate) fn is_directory(self) -> bool {
        match self {
            Node::Root => true,
            Node::SelfLink | Node::ThreadSelfLink | Node::MemoryInfo => false,
            Node::Owned(_, entry) => entry.kind() == libc::DT_DIR,
        }
    }

    pub(crate) fn is_link(self) -> bool {
        match self {
            Node::Root | Node::MemoryInfo => false,
            Node::SelfLink | Node::ThreadSelfLink => true,
            Node::Owned(_, entry) => entry.kind() == libc::DT_LNK,
        }
    }

    /// The directory that it is in; `None` for `/proc`, which is in the host's root.
    pub(crate) fn parent(self) -> Option<Node> {
        match self {
            Node::Root => None,
            Node::SelfLink | Node::ThreadSelfLink | Node::MemoryInfo => Some(Node::Root),
            Node::Owned(owner, entry) => Some(match entry {
                Entry::Directory if owner.tid.is_some() => {
                    Node::Owned(Owner::process(owner.pid), Entry::Tasks)
                }
                Entry::Directory => Node::Root,
                Entry::Descriptor(_) => Node::Owned(owner, Entry::Descriptors),
                Entry::DescriptorInfo(_) => Node::Owned(owner, Entry::DescriptorInfos),
                _ => Node::Owned(owner, Entry::Directory),
            }),
        }
    }

    /// The path by which the guest knows it.
    pub(crate) fn path(self) -> String {
        match self {
            Node::Root => "/proc".to_owned(),
            Node::SelfLink => "/proc/self".to_owned(),
            Node::ThreadSelfLink => "/proc/thread-self".to_owned(),
            Node::MemoryInfo => "/proc/meminfo".to_owned(),
            Node::Owned(owner, Entry::Directory) => owner.path(),
            Node::Owned(owner, entry) => format!("{}/{}", owner.path(), entry.name()),
        }
    }

    /// The path of the supervisor's own file of that kind: it has the same type, mode, owner and permissions.
    /// `descriptor` is the host's number for a descriptor of the guest.
    pub(crate) fn stand_in(self, descriptor: Option<i32>) -> String {
        match self {
            Node::Owned(owner, entry) => {
                let supervisor = std::process::id() as i32;
                // The supervisor's first thread is there as long as the supervisor.
                let base = Owner { pid: supervisor, tid: owner.tid.map(|_| supervisor) }.path();
                let entry = match (entry, descriptor) {
                    (Entry::Descriptor(_), Some(host)) => Entry::Descriptor(host),
                    (Entry::DescriptorInfo(_), Some(host)) => Entry::DescriptorInfo(host),
                    _ => entry,
                };
                if entry == Entry::Directory { base } else { format!("{base}/{}", entry.name()) }
            }
            other => other.path(),
        }
    }

    /// An inode number of its own: stable, and not one that the host gives out (its numbers are 32 bits).
    pub(crate) fn inode(self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish() >> 8 | 1 << 40
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_to_its_path_and_back() {
        for owner in [Owner::process(7), Owner::thread(7, 8)] {
            for (name, entry) in owner.names() {
                assert_eq!(owner.entry(name.as_bytes()), Some(entry));
                let node = Node::Owned(owner, entry);
                assert_eq!(node.path(), format!("{}/{name}", owner.path()));
                assert_eq!(node.parent(), Some(Node::Owned(owner, Entry::Directory)));
            }
            assert_eq!(owner.entry(b"nothing"), None);
        }
        assert_eq!(Owner::process(7).entry(b"children"), None);
        assert_eq!(Owner::thread(7, 8).entry(b"task"), None);
    }

    #[test]
    fn inode_numbers_differ() {
        let mut seen = std::collections::BTreeSet::new();
        for owner in (1..50).flat_map(|pid| [Owner::process(pid), Owner::thread(pid, pid)]) {
            for (_, entry) in owner.names() {
                assert!(seen.insert(Node::Owned(owner, entry).inode()));
            }
        }
    }
}
