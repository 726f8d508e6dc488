//! Users, groups and capabilities: what the calls say; the rules are in the sentry's `credentials`.

use super::SysResult;
use crate::GuestAddr;
use crate::sentry::credentials::{Credentials, MOST_GROUPS, cap};
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::task::Task;
use zerocopy::IntoBytes as _;

pub(super) fn getuid(task: &mut Task) -> SysResult {
    Ok(task.credentials().user.real.into())
}

pub(super) fn geteuid(task: &mut Task) -> SysResult {
    Ok(task.credentials().user.effective.into())
}

pub(super) fn getgid(task: &mut Task) -> SysResult {
    Ok(task.credentials().group.real.into())
}

pub(super) fn getegid(task: &mut Task) -> SysResult {
    Ok(task.credentials().group.effective.into())
}

/// Writes three ids as `getresuid` and `getresgid` do.
fn write_ids(task: &Task, addrs: [GuestAddr; 3], ids: [u32; 3]) -> SysResult {
    for (addr, id) in addrs.into_iter().zip(ids) {
        task.memory().write_object(addr, &id)?;
    }
    Ok(0)
}

pub(super) fn getresuid(
    task: &mut Task,
    real: GuestAddr,
    effective: GuestAddr,
    saved: GuestAddr,
) -> SysResult {
    let ids = task.credentials().user;
    write_ids(task, [real, effective, saved], [ids.real, ids.effective, ids.saved])
}

pub(super) fn getresgid(
    task: &mut Task,
    real: GuestAddr,
    effective: GuestAddr,
    saved: GuestAddr,
) -> SysResult {
    let ids = task.credentials().group;
    write_ids(task, [real, effective, saved], [ids.real, ids.effective, ids.saved])
}

fn change(task: &mut Task, new: Result<Credentials, Errno>) -> SysResult {
    task.change_credentials(new?).map(|()| 0)
}

pub(super) fn setuid(task: &mut Task, uid: u32) -> SysResult {
    let new = task.credentials().set_uid(uid);
    change(task, new)
}

pub(super) fn setgid(task: &mut Task, gid: u32) -> SysResult {
    let new = task.credentials().set_gid(gid);
    change(task, new)
}

pub(super) fn setreuid(task: &mut Task, real: u32, effective: u32) -> SysResult {
    let new = task.credentials().set_uids(real, effective);
    change(task, new)
}

pub(super) fn setregid(task: &mut Task, real: u32, effective: u32) -> SysResult {
    let new = task.credentials().set_gids(real, effective);
    change(task, new)
}

pub(super) fn setresuid(task: &mut Task, real: u32, effective: u32, saved: u32) -> SysResult {
    let new = task.credentials().set_all_uids([real, effective, saved]);
    change(task, new)
}

pub(super) fn setresgid(task: &mut Task, real: u32, effective: u32, saved: u32) -> SysResult {
    let new = task.credentials().set_all_gids([real, effective, saved]);
    change(task, new)
}

/// `setfsuid` has no error: it returns the old id and leaves it when it may not change it.
pub(super) fn setfsuid(task: &mut Task, uid: u32) -> SysResult {
    let old = task.credentials();
    if let Some(new) = old.set_fs_uid(uid) {
        let _ = task.change_credentials(new);
    }
    Ok(old.user.fs.into())
}

pub(super) fn setfsgid(task: &mut Task, gid: u32) -> SysResult {
    let old = task.credentials();
    if let Some(new) = old.set_fs_gid(gid) {
        let _ = task.change_credentials(new);
    }
    Ok(old.group.fs.into())
}

pub(super) fn getgroups(task: &mut Task, size: i32, list: GuestAddr) -> SysResult {
    let size = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
    let credentials = task.credentials();
    let groups = &*credentials.groups;
    if size != 0 {
        if groups.len() > size {
            return Err(Errno::EINVAL);
        }
        task.memory().write(list, groups.as_bytes())?;
    }
    Ok(groups.len() as i64)
}

pub(super) fn setgroups(task: &mut Task, size: i32, list: GuestAddr) -> SysResult {
    let credentials = task.credentials();
    if !credentials.has(cap::SETGID) {
        return Err(Errno::EPERM);
    }
    let size = usize::try_from(size).ok().filter(|size| *size <= MOST_GROUPS).ok_or(Errno::EINVAL)?;
    let mut groups = vec![0_u32; size];
    task.memory().read(list, groups.as_mut_bytes())?;
    if groups.contains(&u32::MAX) {
        return Err(Errno::EINVAL);
    }
    task.change_credentials(credentials.set_groups(groups)).map(|()| 0)
}

/// The words of a set in the interface's version of the header; the version that is known is written back to
/// a header of another.
fn capability_words(task: &Task, header: GuestAddr) -> Result<(Option<usize>, i32), Errno> {
    const VERSIONS: [(u32, usize); 3] = [(0x1998_0330, 1), (0x2007_1026, 2), (0x2008_0522, 2)];
    let [version, pid] = task.memory().read_object::<[u32; 2]>(header)?;
    let words = VERSIONS.iter().find(|(known, _)| *known == version).map(|(_, words)| *words);
    if words.is_none() {
        task.memory().write_object(header, &VERSIONS[2].0)?;
    }
    Ok((words, pid as i32))
}

pub(super) fn capget(task: &mut Task, header: GuestAddr, data: GuestAddr) -> SysResult {
    let (words, pid) = capability_words(task, header)?;
    let words = match words {
        _ if data == GuestAddr::NULL => return Ok(0),
        None => return Err(Errno::EINVAL),
        Some(words) => words,
    };
    if pid < 0 {
        return Err(Errno::EINVAL);
    }
    let caps = match pid {
        0 => task.credentials().caps,
        pid => {
            let tree = task.kernel().tree();
            let thread = tree.thread(pid).map(|thread| thread.credentials());
            let process = || tree.node(pid).map(|node| node.process.credentials());
            thread.or_else(process).ok_or(Errno::ESRCH)?.caps
        }
    };
    let halves = [0_u32, 32]
        .map(|shift| [caps.effective, caps.permitted, caps.inheritable].map(|set| (set >> shift) as u32));
    let shown: Vec<u32> = halves.into_iter().take(words).flatten().collect();
    task.memory().write(data, shown.as_bytes()).map(|()| 0).map_err(Errno::from)
}

pub(super) fn capset(task: &mut Task, header: GuestAddr, data: GuestAddr) -> SysResult {
    let (words, pid) = capability_words(task, header)?;
    let words = words.ok_or(Errno::EINVAL)?;
    if pid != 0 && pid != task.tid() {
        return Err(Errno::EPERM);
    }
    let mut given = [0_u32; 6];
    let part = given.get_mut(..3 * words).ok_or(Errno::EINVAL)?;
    task.memory().read(data, part.as_mut_bytes())?;
    let [e0, p0, i0, e1, p1, i1] = given.map(u64::from);
    let mut new = Credentials::clone(&task.credentials());
    new.set_capabilities(e0 | e1 << 32, p0 | p1 << 32, i0 | i1 << 32)?;
    task.change_credentials(new).map(|()| 0)
}

/// The `prctl` options about credentials; `None` for those that are not.
pub(super) fn prctl(task: &mut Task, option: i32, args: [u64; 4]) -> Option<SysResult> {
    let mut new = Credentials::clone(&task.credentials());
    let [arg, arg3, arg4, arg5] = args;
    let capability = |number: u64| -> Result<u32, Errno> {
        u32::try_from(number).ok().filter(|number| *number <= last_capability()).ok_or(Errno::EINVAL)
    };
    let changed = match option {
        libc::PR_CAPBSET_READ => {
            return Some(capability(arg).map(|number| i64::from(new.caps.bounding >> number & 1 != 0)));
        }
        libc::PR_CAPBSET_DROP if !new.has(cap::SETPCAP) => Err(Errno::EPERM),
        libc::PR_CAPBSET_DROP => capability(arg).and_then(|number| new.drop_bounding(number)),
        libc::PR_GET_SECUREBITS => return Some(Ok(new.securebits.0.into())),
        libc::PR_SET_SECUREBITS => new.set_securebits(arg),
        libc::PR_GET_KEEPCAPS => return Some(Ok(i64::from(new.securebits.0 >> 4 & 1))),
        libc::PR_SET_KEEPCAPS => new.keep_capabilities(arg),
        libc::PR_CAP_AMBIENT => match arg as i32 {
            libc::PR_CAP_AMBIENT_CLEAR_ALL if arg3 | arg4 | arg5 == 0 => {
                new.caps.ambient = 0;
                Ok(())
            }
            libc::PR_CAP_AMBIENT_CLEAR_ALL => Err(Errno::EINVAL),
            _ if arg4 | arg5 != 0 => Err(Errno::EINVAL),
            operation => match (capability(arg3), operation) {
                (Err(errno), _) => Err(errno),
                (Ok(number), libc::PR_CAP_AMBIENT_IS_SET) => {
                    return Some(Ok(i64::from(new.caps.ambient >> number & 1 != 0)));
                }
                (Ok(number), libc::PR_CAP_AMBIENT_RAISE) => new.raise_ambient(number),
                (Ok(number), libc::PR_CAP_AMBIENT_LOWER) => {
                    new.caps.ambient &= !(1 << number);
                    Ok(())
                }
                _ => Err(Errno::EINVAL),
            },
        },
        libc::PR_SET_NO_NEW_PRIVS if (arg, arg3, arg4, arg5) == (1, 0, 0, 0) => {
            new.no_new_privs = true;
            Ok(())
        }
        libc::PR_SET_NO_NEW_PRIVS => Err(Errno::EINVAL),
        // Programs gain nothing from their files here, which is what the flag says.
        libc::PR_GET_NO_NEW_PRIVS if arg | arg3 | arg4 | arg5 == 0 => return Some(Ok(1)),
        libc::PR_GET_NO_NEW_PRIVS => return Some(Err(Errno::EINVAL)),
        _ => return None,
    };
    Some(changed.and_then(|()| task.change_credentials(new)).map(|()| 0))
}

/// The highest capability that the host knows.
fn last_capability() -> u32 {
    static LAST: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *LAST.get_or_init(|| {
        (0..64)
            .take_while(|number| crate::sentry::host::bounding_capability(*number).is_some())
            .last()
            .unwrap_or(0)
    })
}
