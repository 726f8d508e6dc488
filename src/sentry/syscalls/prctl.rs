//! prctl(2).

use super::SysResult;
use super::args::Hex;
use super::credentials;
use crate::GuestAddr;
use crate::sentry::abi::NSIG;
use crate::sentry::credentials::cap;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::task::Task;

const PR_SET_IO_FLUSHER: i32 = 57;
const PR_MCE_KILL_CLEAR: u64 = 0;
const PR_MCE_KILL_SET: u64 = 1;

/// Sets the name of the task; a longer one is cut.
fn set_name(task: &mut Task, addr: GuestAddr) -> SysResult {
    const NAME_LEN: usize = 16;
    let name = match task.memory().read_string(addr, NAME_LEN, Errno::ENAMETOOLONG) {
        Ok(name) => name.into_bytes(),
        Err(Errno::ENAMETOOLONG) => {
            let mut bytes = [0; NAME_LEN - 1];
            task.memory().read(addr, &mut bytes)?;
            bytes.to_vec()
        }
        Err(errno) => return Err(errno),
    };
    task.handle.set_name(&name);
    Ok(0)
}

pub(super) fn prctl(task: &mut Task, option: i32, arg: Hex, arg3: Hex, arg4: Hex, arg5: Hex) -> SysResult {
    if let Some(result) = credentials::prctl(task, option, [arg.0, arg3.0, arg4.0, arg5.0]) {
        return result;
    }
    let addr = GuestAddr::new(arg.0);
    let rest_is_zero = arg3.0 | arg4.0 | arg5.0 == 0;
    match option {
        libc::PR_SET_NAME => set_name(task, addr),
        libc::PR_GET_NAME => task.memory().write_object(addr, &task.handle.name()).map(|()| 0),
        libc::PR_SET_DUMPABLE if arg.0 <= 1 => {
            task.process.attributes().dumpable = arg.0 == 1;
            Ok(0)
        }
        libc::PR_GET_DUMPABLE => Ok(task.process.attributes().dumpable.into()),
        libc::PR_SET_PDEATHSIG => {
            let signo = i32::try_from(arg.0).ok().filter(|signo| (0..=NSIG).contains(signo));
            let signo = signo.ok_or(Errno::EINVAL)?;
            task.with_node(|node| node.death_signal = signo);
            Ok(0)
        }
        libc::PR_GET_PDEATHSIG => {
            let signo = task.with_node(|node| node.death_signal).unwrap_or(0);
            task.memory().write_object(addr, &signo).map(|()| 0)
        }
        libc::PR_SET_CHILD_SUBREAPER => {
            task.with_node(|node| node.is_subreaper = arg.0 != 0);
            Ok(0)
        }
        libc::PR_GET_CHILD_SUBREAPER => {
            let is = task.with_node(|node| node.is_subreaper).unwrap_or(false);
            task.memory().write_object(addr, &i32::from(is)).map(|()| 0)
        }
        libc::PR_SET_TIMERSLACK => {
            let mut attributes = task.handle.attributes();
            let default = attributes.default_slack_ns;
            attributes.timer_slack_ns = if arg.0 as i64 <= 0 { default } else { arg.0 };
            Ok(0)
        }
        libc::PR_GET_TIMERSLACK => Ok(task.handle.attributes().timer_slack_ns as i64),
        libc::PR_SET_TIMING if arg.0 == 0 => Ok(0),
        libc::PR_GET_TIMING | libc::PR_GET_SECCOMP => Ok(0),
        libc::PR_GET_TSC => {
            const PR_TSC_ENABLE: i32 = 1;
            task.memory().write_object(addr, &PR_TSC_ENABLE).map(|()| 0)
        }
        libc::PR_SET_TSC if arg.0 == 1 => Ok(0),
        libc::PR_GET_TID_ADDRESS => task.memory().write_object(addr, &task.clear_child_tid).map(|()| 0),
        libc::PR_SET_THP_DISABLE if rest_is_zero => {
            task.process.attributes().no_huge_pages = arg.0 != 0;
            Ok(0)
        }
        libc::PR_GET_THP_DISABLE if arg.0 == 0 && rest_is_zero => {
            Ok(task.process.attributes().no_huge_pages.into())
        }
        libc::PR_MCE_KILL if arg4.0 | arg5.0 == 0 => {
            let policy = match arg.0 {
                PR_MCE_KILL_CLEAR if arg3.0 == 0 => 2,
                PR_MCE_KILL_SET if arg3.0 <= 2 => arg3.0 as i32,
                _ => return Err(Errno::EINVAL),
            };
            task.process.attributes().machine_check_policy = policy;
            Ok(0)
        }
        libc::PR_MCE_KILL_GET if arg.0 == 0 && rest_is_zero => {
            Ok(task.process.attributes().machine_check_policy.into())
        }
        // What the record of a process says about its memory is for it to make, not to forge.
        libc::PR_SET_MM => Err(Errno::EPERM),
        PR_SET_IO_FLUSHER if !task.credentials().has(cap::SYS_RESOURCE) => Err(Errno::EPERM),
        // The rest as a kernel that was built without it.
        _ => Err(Errno::EINVAL),
    }
}
