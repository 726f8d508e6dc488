//! membarrier(2). Barriers are made by the host for all that runs, stub threads included.

use super::SysResult;
use crate::sentry::errno::Errno;
use crate::sentry::task::Task;

const QUERY: i32 = 0;
const GLOBAL: i32 = 1;
const GLOBAL_EXPEDITED: i32 = 1 << 1;
const REGISTER_GLOBAL_EXPEDITED: i32 = 1 << 2;
const PRIVATE_EXPEDITED: i32 = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: i32 = 1 << 4;
const GET_REGISTRATIONS: i32 = 1 << 9;

/// The supervisor is not in the guest's address space, so that the host's expedited barriers for one process do not
/// concern the guest's threads. The general one does: slower, and as strong. What serialises instructions is not
/// offered, for that one does not promise it.
pub(super) fn membarrier(task: &mut Task, command: i32, flags: u32, _cpu: i32) -> SysResult {
    const OFFERED: i32 = GLOBAL
        | GLOBAL_EXPEDITED
        | REGISTER_GLOBAL_EXPEDITED
        | PRIVATE_EXPEDITED
        | REGISTER_PRIVATE_EXPEDITED
        | GET_REGISTRATIONS;
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    match command {
        QUERY => Ok(OFFERED.into()),
        REGISTER_GLOBAL_EXPEDITED | REGISTER_PRIVATE_EXPEDITED => {
            task.process.attributes().barriers |= command as u32;
            Ok(0)
        }
        GET_REGISTRATIONS => Ok(task.process.attributes().barriers.into()),
        PRIVATE_EXPEDITED if task.process.attributes().barriers & REGISTER_PRIVATE_EXPEDITED as u32 == 0 => {
            Err(Errno::EPERM)
        }
        GLOBAL | GLOBAL_EXPEDITED | PRIVATE_EXPEDITED => {
            task.context.prepare_sleep();
            // A host that cannot do it must not be believed to have done it.
            task.kernel().platform.global_memory_barrier().map(|()| 0).map_err(|_| Errno::ENOSYS)
        }
        _ => Err(Errno::EINVAL),
    }
}
