//! What a guest costs that only waits: memory and CPU time of the supervisor and all stub processes.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::child::{Group, contents, output_file};
use super::figures::Sample;
use super::{Effort, Mode, Programs};

/// How long whoever spins after the start is given to go to sleep.
const SETTLE: Duration = Duration::from_millis(300);

/// Proportional set size in bytes.
pub fn memory(mode: Mode, programs: &Programs, effort: &Effort) -> Result<Sample, String> {
    let guest = start(mode, programs, effort)?;
    let sizes = processes(mode, guest.pid())?.into_iter().map(pss_bytes);
    Ok(Sample::of(sizes.sum::<Result<u64, _>>()? as f64))
}

/// CPU time in per cent of one CPU.
pub fn cpu(mode: Mode, programs: &Programs, effort: &Effort) -> Result<Sample, String> {
    let guest = start(mode, programs, effort)?;
    let used = || processes(mode, guest.pid())?.into_iter().map(run_ns).sum::<Result<u64, String>>();
    let (begun, before) = (Instant::now(), used()?);
    sleep(effort.watch);
    let ns = used()?.saturating_sub(before);
    Ok(Sample::of(100.0 * ns as f64 / begun.elapsed().as_nanos() as f64))
}

/// Starts the program and waits until it is idle.
fn start(mode: Mode, programs: &Programs, effort: &Effort) -> Result<Group, String> {
    let (mut stdout, mut stderr) = (output_file()?, output_file()?);
    let mut group = Group::start(&mut mode.command(&programs.idle), &stdout, &stderr)?;
    let begun = Instant::now();
    while contents(&mut stdout) != "idle\n" {
        if let Ok(Some(status)) = group.child.try_wait() {
            return Err(format!("the idle program ended, {status}: {}", contents(&mut stderr).trim()));
        }
        if begun.elapsed() > effort.patience {
            return Err(format!("the idle program was not ready within {:?}", effort.patience));
        }
        sleep(Duration::from_millis(2));
    }
    sleep(SETTLE);
    Ok(group)
}

/// The process and all its descendants.
fn processes(mode: Mode, first: Pid) -> Result<Vec<Pid>, String> {
    let mut all = vec![first];
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        next += 1;
        for task in tasks(pid)? {
            let children = read(&format!("{task}/children"))?;
            all.extend(children.split_whitespace().filter_map(|child| child.parse().ok().map(Pid::from_raw)));
        }
    }
    if mode != Mode::Native && all.len() < 2 {
        return Err("systrap has no stub process".to_owned());
    }
    Ok(all)
}

fn tasks(pid: Pid) -> Result<Vec<String>, String> {
    let directory = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&directory).map_err(|error| format!("{directory}: {error}"))?;
    Ok(entries.flatten().map(|entry| entry.path().display().to_string()).collect())
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

fn pss_bytes(pid: Pid) -> Result<u64, String> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = read(&path)?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| format!("{path} has no Pss"))
}

/// Nanoseconds that the threads of a process ran; clock ticks would be too coarse.
fn run_ns(pid: Pid) -> Result<u64, String> {
    let each = tasks(pid)?.into_iter().map(|task| {
        let path = format!("{task}/schedstat");
        let text = read(&path)?;
        let ns = text.split_whitespace().next().and_then(|ns| ns.parse::<u64>().ok());
        ns.ok_or_else(|| format!("{path} has no run time"))
    });
    each.sum()
}
