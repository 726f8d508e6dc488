//! From a path inside `/proc` to what it names: pure, over what the caller says of processes and descriptors.

use super::node::{Entry, Link, Node, Owner};
use crate::sentry::errno::Errno;

/// The most links that one path follows (`MAXSYMLINKS`).
const MOST_LINKS: usize = 40;

/// Whose a process id is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    /// A process or thread of the guest.
    Guest(Owner),
    /// The platform's or the supervisor's own: the guest sees nothing.
    Hidden,
    /// The host's.
    Host,
}

/// What the walk asks.
pub(crate) trait World {
    /// What a link of the host's leads to.
    type Anchor;

    /// The process and the thread that ask.
    fn caller(&self) -> Owner;
    fn identity(&self, id: i32) -> Identity;
    fn has_thread(&self, pid: i32, tid: i32) -> bool;
    fn has_descriptor(&self, owner: Owner, fd: i32) -> bool;
    /// Whether there are directories `net`.
    fn has_network(&self) -> bool;
    /// Whether the host's `meminfo` is true of the guest.
    fn has_all_memory(&self) -> bool;
    /// Where a link leads: a node again, or a file of the host's.
    fn follow(&self, owner: Owner, entry: Entry) -> Result<Target<Self::Anchor>, Errno>;
}

/// Where a link leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target<A> {
    Node(Node),
    Anchor(A),
}

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Named<A> {
    Node(Node),
    /// A path of the host's.
    Host(Vec<u8>),
    /// What is left of the path after a link that leads out of `/proc`.
    Beyond(A, Vec<u8>),
    /// The path has left `/proc`: an absolute path to look at again.
    Outside(Vec<u8>),
}

/// Walks a path from a directory in `/proc`; `follow` says whether a last link is followed.
pub(crate) fn walk<W: World>(
    world: &W,
    start: Node,
    path: &[u8],
    follow: bool,
) -> Result<Named<W::Anchor>, Errno> {
    let mut at = start;
    let mut rest = path;
    let mut links = 0;
    loop {
        let slashes = rest.iter().take_while(|byte| **byte == b'/').count();
        rest = &rest[slashes..];
        if rest.is_empty() {
            return Ok(Named::Node(at));
        }
        if !at.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        let (name, remainder) = rest.split_at(end);
        rest = remainder;
        at = match name {
            b"." => at,
            b".." => match at.parent() {
                Some(parent) => parent,
                None => return Ok(Named::Outside([b"/", remainder].concat())),
            },
            name => match look_up(world, at, name)? {
                Child::Node(node) if node.is_link() && (follow || !remainder.is_empty()) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Errno::ELOOP);
                    }
                    match target(world, node, remainder)? {
                        Followed::Node(node) => node,
                        Followed::End(named) => return Ok(named),
                    }
                }
                Child::Node(node) if !node.is_directory() && !remainder.is_empty() => {
                    return Err(Errno::ENOTDIR);
                }
                Child::Node(node) => node,
                Child::Host(prefix) => match returns(remainder) {
                    // Back where it came from, or above.
                    Some(left) => {
                        rest = left;
                        at
                    }
                    None => return Ok(Named::Host([prefix.as_bytes(), remainder].concat())),
                },
            },
        };
    }
}

/// What a name in a directory stands for.
enum Child {
    Node(Node),
    /// The host's file or directory of that path.
    Host(String),
}

enum Followed<A> {
    Node(Node),
    End(Named<A>),
}

fn target<W: World>(world: &W, link: Node, remainder: &[u8]) -> Result<Followed<W::Anchor>, Errno> {
    let caller = world.caller();
    Ok(match link {
        Node::SelfLink => Followed::Node(Node::Owned(Owner::process(caller.pid), Entry::Directory)),
        Node::ThreadSelfLink => Followed::Node(Node::Owned(caller, Entry::Directory)),
        Node::Owned(_, Entry::Link(Link::Root)) => Followed::End(Named::Outside([b"/", remainder].concat())),
        Node::Owned(owner, entry) => match world.follow(owner, entry)? {
            Target::Node(node) => Followed::Node(node),
            Target::Anchor(anchor) => Followed::End(Named::Beyond(anchor, remainder.to_vec())),
        },
        Node::Root | Node::MemoryInfo => Followed::Node(link),
    })
}

/// A number as the kernel takes it in a name: no sign, no leading zero.
pub(crate) fn number(name: &[u8]) -> Option<i32> {
    let digits = name.iter().all(u8::is_ascii_digit) && (name == b"0" || !name.starts_with(b"0"));
    std::str::from_utf8(name).ok().filter(|_| digits)?.parse().ok()
}

fn look_up<W: World>(world: &W, directory: Node, name: &[u8]) -> Result<Child, Errno> {
    let node = |owner, entry| Ok(Child::Node(Node::Owned(owner, entry)));
    match directory {
        Node::Root => match name {
            b"self" => Ok(Child::Node(Node::SelfLink)),
            b"thread-self" => Ok(Child::Node(Node::ThreadSelfLink)),
            b"net" if !world.has_network() => Err(Errno::ENOENT),
            b"meminfo" if !world.has_all_memory() => Ok(Child::Node(Node::MemoryInfo)),
            _ => match number(name).map(|id| world.identity(id)) {
                Some(Identity::Guest(owner)) => node(owner, Entry::Directory),
                Some(Identity::Hidden) => Err(Errno::ENOENT),
                _ => {
                    let name = std::str::from_utf8(name).map_err(|_| Errno::ENOENT)?;
                    Ok(Child::Host(format!("/proc/{name}")))
                }
            },
        },
        Node::Owned(owner, Entry::Directory) => {
            let alive = match owner.tid {
                None => world.identity(owner.pid) == Identity::Guest(Owner::process(owner.pid)),
                Some(tid) => world.has_thread(owner.pid, tid),
            };
            match owner.entry(name).filter(|_| alive) {
                Some(Entry::Host("net")) if !world.has_network() => Err(Errno::ENOENT),
                Some(entry @ Entry::Host(_)) if entry.kind() == libc::DT_DIR => {
                    Ok(Child::Host(Node::Owned(owner, entry).stand_in(None)))
                }
                Some(entry) => node(owner, entry),
                None => Err(Errno::ENOENT),
            }
        }
        Node::Owned(owner, Entry::Tasks) => match number(name) {
            Some(tid) if world.has_thread(owner.pid, tid) => {
                node(Owner::thread(owner.pid, tid), Entry::Directory)
            }
            _ => Err(Errno::ENOENT),
        },
        Node::Owned(owner, entry @ (Entry::Descriptors | Entry::DescriptorInfos)) => {
            let fd = number(name).filter(|fd| world.has_descriptor(owner, *fd)).ok_or(Errno::ENOENT)?;
            node(
                owner,
                match entry {
                    Entry::Descriptors => Entry::Descriptor(fd),
                    _ => Entry::DescriptorInfo(fd),
                },
            )
        }
        _ => Err(Errno::ENOTDIR),
    }
}

/// The path that is left when what follows a name of the host's climbs out of it again by `..`.
///
/// By text: the host's directories in question (`sys`, `bus`, `irq`, …) hold no links to other directories.
fn returns(remainder: &[u8]) -> Option<&[u8]> {
    let mut depth = 1_usize;
    let mut rest = remainder;
    while !rest.is_empty() {
        let slashes = rest.iter().take_while(|byte| **byte == b'/').count();
        rest = &rest[slashes..];
        let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        match &rest[..end] {
            b"" | b"." => {}
            b".." => depth -= 1,
            _ => depth += 1,
        }
        rest = &rest[end..];
        if depth == 0 {
            return Some(rest);
        }
    }
    None
}

#[cfg(test)]
mod tests;
