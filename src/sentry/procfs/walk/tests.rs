//! Paths into `/proc`, the adversarial ones too.

use super::super::node::Text;
use super::*;

/// Process 42 with threads 42 and 43, which asks; process 50; 60 is hidden, 1 the host's.
struct Fake;

impl World for Fake {
    type Anchor = &'static str;

    fn caller(&self) -> Owner {
        Owner::thread(42, 43)
    }

    fn identity(&self, id: i32) -> Identity {
        match id {
            42 | 50 => Identity::Guest(Owner::process(id)),
            43 => Identity::Guest(Owner::thread(42, 43)),
            60 => Identity::Hidden,
            _ => Identity::Host,
        }
    }

    fn has_thread(&self, pid: i32, tid: i32) -> bool {
        matches!((pid, tid), (42, 42 | 43) | (50, 50))
    }

    fn has_descriptor(&self, _: Owner, fd: i32) -> bool {
        fd < 4
    }

    fn has_network(&self) -> bool {
        true
    }

    fn has_all_memory(&self) -> bool {
        true
    }

    fn follow(&self, owner: Owner, entry: Entry) -> Result<Target<&'static str>, Errno> {
        match entry {
            // A descriptor of the directory of descriptors: a way round and round.
            Entry::Descriptor(3) => Ok(Target::Node(Node::Owned(owner, Entry::Descriptors))),
            Entry::Descriptor(_) => Ok(Target::Anchor("file")),
            Entry::Link(Link::WorkingDirectory) => Ok(Target::Anchor("cwd")),
            _ => Ok(Target::Anchor("exe")),
        }
    }
}

fn named(path: &str, follow: bool) -> Result<Named<&'static str>, Errno> {
    walk(&Fake, Node::Root, path.as_bytes(), follow)
}

fn node(pid: i32, tid: Option<i32>, entry: Entry) -> Result<Named<&'static str>, Errno> {
    Ok(Named::Node(Node::Owned(Owner { pid, tid }, entry)))
}

const STAT: Entry = Entry::Text(Text::Stat);

#[test]
fn plain_paths() {
    assert_eq!(named("", true), Ok(Named::Node(Node::Root)));
    assert_eq!(named("/", true), Ok(Named::Node(Node::Root)));
    assert_eq!(named("/self", false), Ok(Named::Node(Node::SelfLink)));
    assert_eq!(named("/self", true), node(42, None, Entry::Directory));
    assert_eq!(named("/self/", false), node(42, None, Entry::Directory));
    assert_eq!(named("/thread-self", false), Ok(Named::Node(Node::ThreadSelfLink)));
    assert_eq!(named("/thread-self/stat", false), node(42, Some(43), STAT));
    assert_eq!(named("/50/stat", false), node(50, None, STAT));
    assert_eq!(named("/43/stat", false), node(42, Some(43), STAT));
    assert_eq!(named("/42/task/43/stat", false), node(42, Some(43), STAT));
    assert_eq!(named("/42/task/43/children", false), node(42, Some(43), Entry::Text(Text::Children)));
    assert_eq!(named("/self/fd/2", false), node(42, None, Entry::Descriptor(2)));
    assert_eq!(named("/self/fd/2", true), Ok(Named::Beyond("file", vec![])));
    assert_eq!(named("/self/fd/2/x", false), Ok(Named::Beyond("file", b"/x".to_vec())));
    assert_eq!(named("/self/exe", true), Ok(Named::Beyond("exe", vec![])));
    assert_eq!(named("/cpuinfo", true), Ok(Named::Host(b"/proc/cpuinfo".to_vec())));
    assert_eq!(named("/1/stat", true), Ok(Named::Host(b"/proc/1/stat".to_vec())));
    assert_eq!(named("/sys/kernel/pid_max", true), Ok(Named::Host(b"/proc/sys/kernel/pid_max".to_vec())));
}

#[test]
fn dots_and_slashes() {
    assert_eq!(named("//self/./stat", false), node(42, None, STAT));
    assert_eq!(named("/self/../self/exe", true), Ok(Named::Beyond("exe", vec![])));
    assert_eq!(named("/self/task/43/../../stat", false), node(42, None, STAT));
    assert_eq!(named("/sys/../self/stat", false), node(42, None, STAT));
    assert_eq!(named("/sys/./kernel//../../50/stat", false), node(50, None, STAT));
    assert_eq!(named("/self/ns/../stat", false), node(42, None, STAT));
    assert_eq!(named("/1/../self/stat", false), node(42, None, STAT));
    assert_eq!(named("/..", true), Ok(Named::Outside(b"/".to_vec())));
    assert_eq!(named("/sys/../../proc/self/exe", true), Ok(Named::Outside(b"//proc/self/exe".to_vec())));
    assert_eq!(named("/self/root/proc/self/exe", true), Ok(Named::Outside(b"//proc/self/exe".to_vec())));
    assert_eq!(named("/self/cwd/../x", true), Ok(Named::Beyond("cwd", b"/../x".to_vec())));
}

#[test]
fn errors_are_linuxs() {
    assert_eq!(named("/self/stat/", false), Err(Errno::ENOTDIR));
    assert_eq!(named("/self/stat/x", false), Err(Errno::ENOTDIR));
    assert_eq!(named("/self/stat/..", false), Err(Errno::ENOTDIR));
    assert_eq!(named("/self/nothing", false), Err(Errno::ENOENT));
    assert_eq!(named("/self/task/50", false), Err(Errno::ENOENT));
    assert_eq!(named("/60", false), Err(Errno::ENOENT));
    assert_eq!(named("/60/stat", false), Err(Errno::ENOENT));
    for fd in ["-1", "01", "+1", "4", "99999999999", "1x", " 1"] {
        assert_eq!(named(&format!("/self/fd/{fd}"), false), Err(Errno::ENOENT), "{fd}");
    }
    assert_eq!(named(&format!("/self/{}", "x".repeat(256)), false), Err(Errno::ENOENT));
}

#[test]
fn long_ways_end() {
    assert_eq!(named(&"/self/..".repeat(30), true), Ok(Named::Node(Node::Root)));
    assert_eq!(named(&"/self/..".repeat(41), true), Err(Errno::ELOOP));
    assert_eq!(named(&format!("/self/fd{}", "/3".repeat(41)), true), Err(Errno::ELOOP));
    assert_eq!(named(&format!("/self{}/stat", "/.".repeat(1900)), true), node(42, None, STAT));
}

#[test]
fn a_directory_of_a_process_that_is_gone_is_empty() {
    let gone = Node::Owned(Owner::process(70), Entry::Directory);
    assert_eq!(walk(&Fake, gone, b"stat", true), Err(Errno::ENOENT));
    assert_eq!(walk(&Fake, gone, b"..", true), Ok(Named::Node(Node::Root)));
}
