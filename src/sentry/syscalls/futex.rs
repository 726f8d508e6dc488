//! futex(2): its operations.

use super::SysResult;
use crate::GuestAddr;
use crate::sentry::abi::Timespec;
use crate::sentry::errno::Errno;
use crate::sentry::futex::Key;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::task::{Restart, Task};
use std::time::{Duration, Instant};

/// The moment at which a wait gives up.
fn deadline(
    task: &Task,
    timeout: GuestAddr,
    absolute: bool,
    realtime: bool,
) -> Result<Option<Instant>, Errno> {
    let Some(time) = task.memory().read_optional::<Timespec>(timeout)? else { return Ok(None) };
    let time = time.to_duration().ok_or(Errno::EINVAL)?;
    let left = if absolute {
        let clock = if realtime { libc::CLOCK_REALTIME } else { libc::CLOCK_MONOTONIC };
        let mut now = [0; 16];
        host::clock_gettime(clock, &mut now)?;
        time.saturating_sub(Timespec::from_array(now).to_duration().unwrap_or_default())
    } else {
        time
    };
    // Beyond what an Instant holds is for ever.
    const LONGEST: Duration = Duration::from_secs(1 << 32);
    Ok(Instant::now().checked_add(left.min(LONGEST)))
}

pub(super) fn futex(
    task: &mut Task,
    addr: GuestAddr,
    operation: i32,
    value: u32,
    timeout: GuestAddr,
    addr2: GuestAddr,
    value3: u32,
) -> SysResult {
    let private = operation & libc::FUTEX_PRIVATE_FLAG != 0;
    let realtime = operation & libc::FUTEX_CLOCK_REALTIME != 0;
    let command = operation & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
    if realtime && !matches!(command, libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET) {
        return Err(Errno::ENOSYS);
    }
    let kernel = std::sync::Arc::clone(task.kernel());
    // A count below zero wakes one, as in the kernel.
    let count = |count: u32| usize::try_from(count as i32).unwrap_or(1).max(1);
    match command {
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => {
            let with_bits = command == libc::FUTEX_WAIT_BITSET;
            let bitset = if with_bits { value3 } else { u32::MAX };
            if bitset == 0 {
                return Err(Errno::EINVAL);
            }
            let limit = deadline(task, timeout, with_bits, realtime)?;
            let key = task.futex_key(addr, private)?;
            match task.futex_wait(addr, key, value, limit, bitset) {
                // An absolute limit is the same at the second try.
                Err(Errno::ERESTARTSYS) if limit.is_some() && with_bits => Err(Errno::ERESTARTNOHAND),
                Err(Errno::ERESTARTSYS) if limit.is_some() => {
                    task.restart = Some(Restart::Futex { addr, key, value, deadline: limit });
                    Err(Errno::ERESTART_RESTARTBLOCK)
                }
                result => result.map(|()| 0),
            }
        }
        libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET => {
            let bitset = if command == libc::FUTEX_WAKE_BITSET { value3 } else { u32::MAX };
            if bitset == 0 {
                return Err(Errno::EINVAL);
            }
            let key = task.futex_key(addr, private)?;
            check_word(task, addr)?;
            Ok(kernel.futexes.wake(key, count(value), bitset) as i64)
        }
        libc::FUTEX_REQUEUE | libc::FUTEX_CMP_REQUEUE => {
            // The fourth argument is a count here.
            let moved = timeout.raw() as u32;
            if (value as i32) < 0 || (moved as i32) < 0 {
                return Err(Errno::EINVAL);
            }
            let (from, to) = (task.futex_key(addr, private)?, task.futex_key(addr2, private)?);
            check_word(task, addr)?;
            check_word(task, addr2)?;
            let expected = (command == libc::FUTEX_CMP_REQUEUE).then_some(value3);
            let most = (value as usize, moved as usize);
            let (woken, moved) = task.futex_requeue((addr, from), to, most, expected)?;
            Ok((woken + moved) as i64)
        }
        _ => Err(Errno::ENOSYS),
    }
}

/// Goes on with a `FUTEX_WAIT` that has a limit.
pub(super) fn wait_again(
    task: &mut Task,
    addr: GuestAddr,
    key: Key,
    value: u32,
    deadline: Option<Instant>,
) -> SysResult {
    match task.futex_wait(addr, key, value, deadline, u32::MAX) {
        Err(Errno::ERESTARTSYS) => {
            task.restart = Some(Restart::Futex { addr, key, value, deadline });
            Err(Errno::ERESTART_RESTARTBLOCK)
        }
        result => result.map(|()| 0),
    }
}

/// A shared word has to be mapped, a private one only within the user's range.
fn check_word(task: &Task, addr: GuestAddr) -> Result<(), Errno> {
    if addr.raw() < task.kernel().platform.max_user_address().raw() { Ok(()) } else { Err(Errno::EFAULT) }
}
