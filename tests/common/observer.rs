//! A tracer that records which host calls of stub processes pass their filters.
//!
//! The traced program installs one more filter, `SECCOMP_RET_TRACE` for everything, in the thread that makes
//! the platform; all stub processes inherit it. Of all filters the strictest answer counts and TRAP is
//! stricter than TRACE, so that exactly what the stub's own filters let through stops here.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Whose call it was: what filters the thread had when it made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// A thread of the traced supervisor.
    Supervisor,
    /// The template before its base filter.
    Template,
    /// Under the base filter.
    Base,
    /// Under the base filter and the guest filter.
    Guest,
}

/// A host call that was about to be executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Passed {
    pub role: Role,
    pub arch: u32,
    pub nr: u64,
    pub args: [u64; 6],
    /// The address after the instruction.
    pub ip: u64,
}

#[repr(C)]
#[derive(Default)]
struct SyscallInfo {
    op: u8,
    pad: [u8; 3],
    arch: u32,
    ip: u64,
    sp: u64,
    nr: u64,
    args: [u64; 6],
    ret_data: u32,
    reserved: u32,
}

const PTRACE_GET_SYSCALL_INFO: u32 = 0x420e;
const SYSCALL_INFO_SECCOMP: u8 = 3;

#[derive(Debug, Default)]
pub struct Record {
    pub passed: Vec<Passed>,
    /// Signal deliveries by number: SIGSYS counts the calls that did not pass.
    pub signals: HashMap<i32, u64>,
    pub tasks: u64,
}

fn request(request: u32, tid: i32, addr: u64, data: u64) -> i64 {
    // SAFETY: only requests that write nothing here, or into a buffer that outlives the call.
    unsafe { libc::ptrace(request, tid, addr, data) }
}

/// Traces the process `pid` and everything it makes, until it ends; returns its wait status.
pub fn trace(pid: i32, begin: impl FnOnce()) -> (Record, i32) {
    let options = libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACESECCOMP
        | libc::PTRACE_O_EXITKILL;
    let mut roles = HashMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task")).expect("the threads of the child").flatten() {
        let tid: i32 = entry.file_name().to_string_lossy().parse().expect("a thread id");
        let seized = request(libc::PTRACE_SEIZE, tid, 0, options as u64);
        assert_eq!(seized, 0, "PTRACE_SEIZE: {} (Yama?)", std::io::Error::last_os_error());
        roles.insert(tid, Role::Supervisor);
    }
    begin();
    let mut record = Record::default();
    let mut strangers = Vec::new();
    loop {
        let mut status = 0;
        // SAFETY: writes the status word. Only children and tracees of this very thread are waited for.
        let tid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        assert!(tid > 0, "waitpid: {}", std::io::Error::last_os_error());
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            roles.remove(&tid);
            if tid == pid {
                return (record, status);
            }
            continue;
        }
        let mut signal = 0;
        match status >> 16 {
            0 => {
                signal = libc::WSTOPSIG(status);
                *record.signals.entry(signal).or_default() += 1;
            }
            libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK => {
                let mut new = 0_u64;
                request(libc::PTRACE_GETEVENTMSG, tid, 0, (&raw mut new).addr() as u64);
                let new = i32::try_from(new).expect("a thread id");
                let role = match roles[&tid] {
                    Role::Supervisor if is_other_process(new, pid) => Role::Template,
                    role => role,
                };
                record.tasks += 1;
                roles.insert(new, role);
                if let Some(at) = strangers.iter().position(|tid| *tid == new) {
                    strangers.swap_remove(at);
                    request(libc::PTRACE_CONT, new, 0, 0);
                }
            }
            libc::PTRACE_EVENT_SECCOMP => {
                if let Some(passed) = look(tid, roles[&tid]) {
                    let installs = passed.nr == libc::SYS_seccomp as u64;
                    let next = match passed.role {
                        Role::Template if installs => Role::Base,
                        Role::Base if installs => Role::Guest,
                        role => role,
                    };
                    roles.insert(tid, next);
                    record.passed.push(passed);
                }
            }
            // The first stop of a new task may come before its parent's event.
            _ if !roles.contains_key(&tid) => {
                strangers.push(tid);
                continue;
            }
            _ => {}
        }
        request(libc::PTRACE_CONT, tid, 0, signal as u64);
    }
}

fn look(tid: i32, role: Role) -> Option<Passed> {
    if role == Role::Supervisor {
        return None;
    }
    let mut info = SyscallInfo::default();
    let got =
        request(PTRACE_GET_SYSCALL_INFO, tid, size_of::<SyscallInfo>() as u64, (&raw mut info).addr() as u64);
    // A task that is being killed cannot be looked at any more, and makes no call either.
    if got <= 0 {
        return None;
    }
    assert_eq!(info.op, SYSCALL_INFO_SECCOMP, "a stop of another kind");
    Some(Passed { role, arch: info.arch, nr: info.nr, args: info.args, ip: info.ip })
}

fn is_other_process(tid: i32, pid: i32) -> bool {
    !std::path::Path::new(&format!("/proc/{pid}/task/{tid}")).exists()
}

/// Kills a process that is still there after `limit`.
pub fn watchdog(pid: i32, limit: Duration) -> std::sync::mpsc::Sender<()> {
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        if ended.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            println!("the traced program had not ended after {limit:?} and is killed");
            // SAFETY: signals a child that is not reaped while the sender lives.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    });
    done
}

/// Installs `SECCOMP_RET_TRACE` for every call of the calling thread and all it will make.
pub fn trace_every_call_of_this_thread() {
    const RET_K: u16 = 0x06;
    const RET_TRACE: u32 = 0x7ff0_0000;
    let mut program = [libc::sock_filter { code: RET_K, jt: 0, jf: 0, k: RET_TRACE }];
    let program = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
    // SAFETY: the program outlives the calls.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let installed = libc::syscall(libc::SYS_seccomp, 1, 0, &raw const program);
        assert_eq!(installed, 0, "seccomp: {}", std::io::Error::last_os_error());
    }
}

/// Runs the test `name` of this program once more, with `role` set in its environment, and traces it and all that comes
/// of it from its word "ready" on, for `limit` at most. It has to end well. Returns what passed, and the stub's base,
/// which it says as `base HEX`.
#[allow(clippy::zombie_processes, reason = "the tracer reaps the child")]
pub fn trace_own_test(name: &str, role: &str, limit: Duration) -> (Record, u64) {
    let exe = std::env::current_exe().expect("this program");
    let mut child = Command::new(exe)
        .args(["--exact", name, "--nocapture"])
        .env(role, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starting the traced supervisor");
    let pid = i32::try_from(child.id()).expect("a pid");
    let mut go = child.stdin.take().expect("its standard input");
    let mut said = BufReader::new(child.stdout.take().expect("its standard output"));
    // It says "ready" once all its threads of the beginning exist.
    let mut line = String::new();
    while !line.contains("ready") {
        line.clear();
        assert_ne!(said.read_line(&mut line).expect("its standard output"), 0, "it ended at once");
    }
    let done = watchdog(pid, limit);
    let (record, status) = trace(pid, || go.write_all(b"go\n").expect("its standard input"));
    let _ = done.send(());
    let mut rest = String::new();
    said.read_to_string(&mut rest).expect("its standard output");
    println!("{rest}");
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "wait status {status:#x}");
    let base = rest.lines().find_map(|line| line.strip_prefix("base ")).expect("where the stub lies");
    let base = u64::from_str_radix(base, 16).expect("an address");
    (record, base)
}
