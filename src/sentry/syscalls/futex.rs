//! futex(2): its operations.

use super::SysResult;
use crate::GuestAddr;
use crate::sentry::abi::Timespec;
use crate::sentry::errno::Errno;
use crate::sentry::futex::Key;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::task::{AfterCall, Restart, Task};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// When a wait gives up: a time of its clock.
fn deadline(
    task: &Task,
    timeout: GuestAddr,
    absolute: bool,
    realtime: bool,
) -> Result<Option<Duration>, Errno> {
    let Some(time) = task.memory().read_optional::<Timespec>(timeout)? else { return Ok(None) };
    let time = time.to_duration().ok_or(Errno::EINVAL)?;
    Ok(Some(if absolute { time } else { now(realtime)?.saturating_add(time) }))
}

fn now(realtime: bool) -> Result<Duration, Errno> {
    let clock = if realtime { libc::CLOCK_REALTIME } else { libc::CLOCK_MONOTONIC };
    let mut now = [0; 16];
    host::clock_gettime(clock, &mut now)?;
    Ok(Timespec::from_array(now).to_duration().unwrap_or_default())
}

/// The arguments of one call.
struct Futex {
    addr: GuestAddr,
    operation: i32,
    value: u32,
    timeout: GuestAddr,
    addr2: GuestAddr,
    value3: u32,
}

impl Futex {
    fn command(&self) -> i32 {
        self.operation & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME)
    }

    fn is_realtime(&self) -> bool {
        self.operation & libc::FUTEX_CLOCK_REALTIME != 0
    }

    fn waits(&self) -> bool {
        matches!(self.command(), libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET)
    }

    fn deadline(&self, task: &Task) -> Result<Option<Duration>, Errno> {
        let absolute = self.command() == libc::FUTEX_WAIT_BITSET;
        deadline(task, self.timeout, absolute, self.is_realtime())
    }
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
    let call = Futex { addr, operation, value, timeout, addr2, value3 };
    if call.is_realtime() && !call.waits() {
        return Err(Errno::ENOSYS);
    }
    if operation & libc::FUTEX_PRIVATE_FLAG != 0 { by_host(task, &call) } else { by_sentry(task, &call) }
}

/// A private futex reaches nobody but the threads of one address space: the stub thread makes the call for its guest,
/// and the host kernel decides all of it.
fn by_host(task: &mut Task, call: &Futex) -> SysResult {
    let args = [
        call.addr.raw(),
        u64::from(call.operation as u32),
        u64::from(call.value),
        call.timeout.raw(),
        call.addr2.raw(),
        u64::from(call.value3),
    ];
    let limit = if call.waits() { call.deadline(task)? } else { None };
    let taken = match limit {
        Some(limit) => task.context.execute_futex_until(args, limit),
        None => task.context.execute_futex(args),
    };
    if !taken {
        return Err(Errno::ENOSYS); // priority inheritance and unknown operations
    }
    // With a limit the kernel keeps what is left for the second try, and gives up if a handler runs.
    let restart = if limit.is_some() { Errno::ERESTARTNOHAND } else { Errno::ERESTARTSYS };
    task.after_call = AfterCall::Executed { nr: libc::SYS_futex as u32, restart };
    Ok(0)
}

/// A futex that processes share, or that is waited for as if they did.
fn by_sentry(task: &mut Task, call: &Futex) -> SysResult {
    let kernel = Arc::clone(task.kernel());
    // A count below one wakes one, as in the kernel.
    let count = |count: u32| usize::try_from(count as i32).unwrap_or(1).max(1);
    let command = call.command();
    let bitset = match command {
        libc::FUTEX_WAIT_BITSET | libc::FUTEX_WAKE_BITSET => call.value3,
        _ => u32::MAX,
    };
    if bitset == 0 {
        return Err(Errno::EINVAL);
    }
    match command {
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => {
            let limit = match call.deadline(task)? {
                Some(limit) => {
                    let left = limit.saturating_sub(now(call.is_realtime())?);
                    // Beyond what an Instant holds is for ever.
                    Instant::now().checked_add(left)
                }
                None => None,
            };
            let key = task.futex_key(call.addr)?;
            match task.futex_wait(call.addr, key, call.value, limit, bitset) {
                // An absolute limit is the same at the second try.
                Err(Errno::ERESTARTSYS) if limit.is_some() && command == libc::FUTEX_WAIT_BITSET => {
                    Err(Errno::ERESTARTNOHAND)
                }
                Err(Errno::ERESTARTSYS) if limit.is_some() => {
                    let (addr, value) = (call.addr, call.value);
                    task.restart = Some(Restart::Futex { addr, key, value, deadline: limit });
                    Err(Errno::ERESTART_RESTARTBLOCK)
                }
                result => result.map(|()| 0),
            }
        }
        libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET => {
            let key = task.futex_key(call.addr)?;
            task.check_futex_word(call.addr)?;
            Ok(kernel.futexes.wake(key, count(call.value), bitset) as i64)
        }
        libc::FUTEX_REQUEUE | libc::FUTEX_CMP_REQUEUE => {
            // The fourth argument is a count here.
            let moved = call.timeout.raw() as u32;
            if (call.value as i32) < 0 || (moved as i32) < 0 {
                return Err(Errno::EINVAL);
            }
            let (from, to) = (task.futex_key(call.addr)?, task.futex_key(call.addr2)?);
            task.check_futex_word(call.addr)?;
            task.check_futex_word(call.addr2)?;
            let expected = (command == libc::FUTEX_CMP_REQUEUE).then_some(call.value3);
            let most = (call.value as usize, moved as usize);
            let (woken, moved) = task.futex_requeue((call.addr, from), to, most, expected)?;
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
