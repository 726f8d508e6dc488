use super::capabilities::cap;
use super::*;
use crate::sentry::errno::Errno;

const ALL: u64 = (1 << 41) - 1;

fn ids(id: u32) -> Ids {
    Ids { real: id, effective: id, saved: id, fs: id }
}

fn root() -> Credentials {
    let caps = CapabilitySets { effective: ALL, permitted: ALL, inheritable: 0, bounding: ALL, ambient: 0 };
    Credentials {
        user: ids(0),
        group: ids(0),
        groups: Arc::new([]),
        caps,
        securebits: Securebits(0),
        no_new_privs: false,
    }
}

fn user(id: u32) -> Credentials {
    root().set_all_gids([id; 3]).unwrap().set_all_uids([id; 3]).unwrap()
}

#[test]
fn root_becomes_a_user_for_good() {
    let user = root().set_uid(1000).unwrap();
    assert_eq!((user.user, user.caps.effective, user.caps.permitted), (ids(1000), 0, 0));
    assert_eq!(user.set_uid(0), Err(Errno::EPERM));
    assert_eq!(user.set_uid(u32::MAX), Err(Errno::EINVAL));
    assert_eq!(user.set_gid(5), Err(Errno::EPERM));
}

#[test]
fn an_effective_id_alone_can_come_back() {
    let other = root().set_uids(u32::MAX, 1000).unwrap();
    assert_eq!((other.caps.effective, other.caps.permitted), (0, ALL));
    assert_eq!(other.user, Ids { real: 0, effective: 1000, saved: 1000, fs: 1000 });
    let back = other.set_uids(u32::MAX, 0).unwrap();
    assert_eq!((back.caps.effective, back.user.effective), (ALL, 0));
}

#[test]
fn ids_are_exchanged_without_privilege() {
    let mut mixed = user(1000);
    mixed.user.saved = 2000;
    let swapped = mixed.set_all_uids([2000, 1000, u32::MAX]).unwrap();
    assert_eq!(swapped.user, Ids { real: 2000, effective: 1000, saved: 2000, fs: 1000 });
    assert_eq!(mixed.set_all_uids([3000, u32::MAX, u32::MAX]), Err(Errno::EPERM));
    assert_eq!(mixed.set_uids(2000, u32::MAX), Err(Errno::EPERM), "the saved id is no real one");
}

#[test]
fn kept_capabilities_survive_as_permitted_ones() {
    let mut root = root();
    root.keep_capabilities(1).unwrap();
    let user = root.set_all_uids([1000; 3]).unwrap();
    assert_eq!((user.caps.effective, user.caps.permitted), (0, ALL));
    let mut user = user;
    user.set_capabilities(1 << cap::KILL, ALL, 0).unwrap();
    assert!(user.has(cap::KILL) && !user.has(cap::SETUID));
    assert_eq!(user.after_exec(ALL).0.caps.permitted, 0);
}

#[test]
fn a_file_system_id_takes_the_file_capabilities_along() {
    let other = root().set_fs_uid(1000).unwrap();
    assert!(!other.has(1) && other.has(cap::KILL));
    assert!(other.set_fs_uid(0).unwrap().has(1));
    assert_eq!(user(1000).set_fs_uid(0), None);
    assert_eq!(root().set_fs_uid(u32::MAX), None);
}

#[test]
fn capabilities_only_go_down() {
    let mut root = root();
    root.set_capabilities(0, 1 << cap::KILL, 0).unwrap();
    assert_eq!(root.set_capabilities(0, ALL, 0), Err(Errno::EPERM));
    assert_eq!(root.set_capabilities(ALL, 1 << cap::KILL, 0), Err(Errno::EPERM));
    assert_eq!(root.drop_bounding(0), Err(Errno::EPERM));
    // A program that root executes gets them back, unless it has renounced that.
    assert_eq!(root.after_exec(ALL).0.caps.effective, ALL);
    root.no_new_privs = true;
    assert_eq!(root.after_exec(ALL).0.caps.effective, 1 << cap::KILL);
}

#[test]
fn ambient_capabilities_go_with_a_program() {
    let mut user = root();
    user.keep_capabilities(1).unwrap();
    user = user.set_all_uids([1000; 3]).unwrap();
    assert_eq!(user.raise_ambient(cap::KILL), Err(Errno::EPERM), "not inheritable");
    user.set_capabilities(0, ALL, 1 << cap::KILL).unwrap();
    user.raise_ambient(cap::KILL).unwrap();
    let (program, secure) = user.after_exec(ALL);
    assert_eq!((program.caps.effective, program.caps.permitted), (1 << cap::KILL, 1 << cap::KILL));
    assert!(!secure);
}

#[test]
fn locked_securebits_stay() {
    let mut root = root();
    root.set_securebits(0b11).unwrap();
    assert_eq!(root.set_securebits(0), Err(Errno::EPERM));
    assert_eq!(root.set_securebits(1 << 20), Err(Errno::EPERM));
    let (program, _) = root.after_exec(ALL);
    assert_eq!(program.caps.effective, 0, "root is an ordinary user then");
    assert_eq!(user(1).set_securebits(0), Err(Errno::EPERM));
}

#[test]
fn different_ids_make_a_program_careful() {
    assert!(!root().after_exec(ALL).1);
    assert!(root().set_uids(u32::MAX, 1000).unwrap().after_exec(ALL).1);
    assert!(!user(1000).after_exec(ALL).1);
}

#[test]
fn permissions_go_by_ids_or_capabilities() {
    let (root, a, b) = (root(), user(1), user(2));
    assert!(root.may_signal(&a) && a.may_signal(&a) && !a.may_signal(&b) && !a.may_signal(&root));
    assert!(root.may_limit(&a) && !a.may_limit(&b) && a.may_limit(&user(1)));
    assert!(root.may_schedule(&b) && !b.may_schedule(&a));
}
