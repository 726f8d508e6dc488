//! Memory policies of a machine with one node (mm/mempolicy.c).

use super::SysResult;
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::task::Task;

const MODE_FLAGS: i32 = 0xe000;
const DEFAULT: i32 = 0;
const PREFERRED: i32 = 1;
const LOCAL: i32 = 4;
const LAST_MODE: i32 = 6;

/// Mode and nodes of a policy, checked; the only node is 0.
fn policy(task: &Task, mode: i32, nodes: GuestAddr, bits: u64) -> Result<(i32, u64), Errno> {
    let plain = mode & !MODE_FLAGS;
    if !(0..=LAST_MODE).contains(&plain) || bits > 8 * crate::PAGE_SIZE {
        return Err(Errno::EINVAL);
    }
    // The count is one more than the bits that there are.
    let words = if nodes == GuestAddr::NULL { 0 } else { bits.saturating_sub(1).div_ceil(64) };
    let mut named = 0;
    for word in 0..words {
        let at = nodes.checked_add(8 * word).ok_or(Errno::EFAULT)?;
        let value: u64 = task.memory().read_object(at)?;
        match word {
            0 if value & !1 == 0 => named = value,
            _ if value == 0 => {}
            _ => return Err(Errno::EINVAL),
        }
    }
    let fits = match plain {
        DEFAULT | LOCAL => named == 0,
        PREFERRED => true,
        _ => named != 0,
    };
    if fits { Ok((mode, named)) } else { Err(Errno::EINVAL) }
}

pub(super) fn set_mempolicy(task: &mut Task, mode: i32, nodes: GuestAddr, bits: u64) -> SysResult {
    let policy = policy(task, mode, nodes, bits)?;
    task.handle.attributes().memory_policy = policy;
    Ok(0)
}

pub(super) fn get_mempolicy(
    task: &mut Task,
    mode: GuestAddr,
    nodes: GuestAddr,
    bits: u64,
    addr: GuestAddr,
    flags: u64,
) -> SysResult {
    const NODE: u64 = 1;
    const ADDR: u64 = 2;
    const MEMS_ALLOWED: u64 = 4;
    let wrong = flags & !(NODE | ADDR | MEMS_ALLOWED) != 0
        || flags & MEMS_ALLOWED != 0 && flags != MEMS_ALLOWED
        || flags & ADDR == 0 && addr != GuestAddr::NULL
        || nodes != GuestAddr::NULL && bits < 2;
    if wrong {
        return Err(Errno::EINVAL);
    }
    if flags & ADDR != 0 && !task.mm.is_mapped(addr.page_down(), 1)? {
        return Err(Errno::EFAULT);
    }
    let (set_mode, set_nodes) = task.handle.attributes().memory_policy;
    let (shown, named) = match flags {
        MEMS_ALLOWED => (0, 1),
        flags if flags & NODE != 0 => (0, 0),
        flags if flags & ADDR != 0 => (DEFAULT, 0),
        _ => (set_mode, set_nodes),
    };
    task.memory().write_optional(mode, &shown)?;
    if nodes != GuestAddr::NULL {
        for word in 0..(bits - 1).div_ceil(64).min(64) {
            let at = nodes.checked_add(8 * word).ok_or(Errno::EFAULT)?;
            task.memory().write_object(at, &if word == 0 { named } else { 0 })?;
        }
    }
    Ok(0)
}

pub(super) fn mbind(
    task: &mut Task,
    addr: GuestAddr,
    len: u64,
    mode: i32,
    nodes: GuestAddr,
    bits: u64,
    flags: u32,
) -> SysResult {
    if !addr.is_page_aligned() || flags & !7 != 0 {
        return Err(Errno::EINVAL);
    }
    policy(task, mode, nodes, bits)?;
    if task.mm.is_mapped(addr, len)? { Ok(0) } else { Err(Errno::EFAULT) }
}

/// All pages are where they can be.
pub(super) fn migrate_pages(
    task: &mut Task,
    pid: i32,
    _bits: u64,
    _from: GuestAddr,
    _to: GuestAddr,
) -> SysResult {
    let known = pid == 0 || task.kernel().tree().process_of(pid).is_some();
    if known { Ok(0) } else { Err(Errno::ESRCH) }
}

pub(super) fn move_pages(
    task: &mut Task,
    pid: i32,
    count: u64,
    pages: GuestAddr,
    nodes: GuestAddr,
    status: GuestAddr,
    flags: u32,
) -> SysResult {
    const MOST: u64 = 1 << 20;
    if flags & !6 != 0 {
        return Err(Errno::EINVAL);
    }
    if pid != 0 && pid != task.process.pid {
        return Err(if task.kernel().tree().process_of(pid).is_some() { Errno::EPERM } else { Errno::ESRCH });
    }
    if count > MOST {
        return Err(Errno::E2BIG);
    }
    for index in 0..count {
        let at = |array: GuestAddr, size: u64| array.checked_add(size * index).ok_or(Errno::EFAULT);
        let page: u64 = task.memory().read_object(at(pages, 8)?)?;
        if nodes != GuestAddr::NULL && task.memory().read_object::<i32>(at(nodes, 4)?)? != 0 {
            return Err(Errno::ENODEV);
        }
        let mapped = task.mm.is_mapped(GuestAddr::new(page).page_down(), 1)?;
        let shown = if mapped { 0 } else { Errno::EFAULT.as_return() as i32 };
        task.memory().write_object(at(status, 4)?, &shown)?;
    }
    Ok(0)
}
