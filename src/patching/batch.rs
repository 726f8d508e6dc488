//! Many sites of one mapping at once: its pages are made writable once, and barriers are shared.

use std::sync::Arc;

use usertrap::{CodeWindow, InstallError, Plan, Step, SyshandlerAddr, WriteMode};

use super::Patcher;
use super::code_map::Code;
use super::hands::Hands;
use crate::GuestAddr;
use crate::address_space::SpaceInner;

/// Patches made before the pages are closed again.
const AT_ONCE: usize = 512;
/// A patch changes no byte further than this from its site, words around the bytes included: what `jmp rel8` reaches, or
/// the planner's line.
const SPREAD: u64 = 160;
/// Sites whose windows are read by one call: no further apart than this.
const READ: u64 = 16 * 1024;

/// Who else runs in the address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Company {
    /// Nobody can be running.
    None,
    /// Other threads may be executing the bytes.
    Running,
    /// They may, and the process has not registered for barriers, which would take milliseconds: patches that need
    /// one are left out.
    RunningWithoutBarriers,
}

impl Company {
    /// How bytes may be written then, the best way first.
    pub(super) fn modes(self) -> &'static [WriteMode] {
        match self {
            // Without barriers, even for padding: the first one of a process costs milliseconds (membarrier(2) waits
            // for a grace period when a process with threads registers).
            Company::None => &[WriteMode::Stopped],
            Company::Running => &[WriteMode::Atomic, WriteMode::Breakpoint],
            Company::RunningWithoutBarriers => &[WriteMode::Atomic],
        }
    }
}

/// Sites of one mapping, about to be patched by one stub thread.
pub(super) struct Batch<'a> {
    pub(super) space: &'a SpaceInner,
    pub(super) hands: &'a Hands<'a>,
    pub(super) code: Code,
    pub(super) company: Company,
}

/// A site, what to do, and how it is done once that is known.
struct Work {
    site: usertrap::GuestAddr,
    steps: Vec<Step>,
}

impl Batch<'_> {
    /// Patches the sites at these file offsets, as far as their bytes are those that were planned for. Gives how many.
    pub(super) fn patch(&self, books: &mut Patcher, plans: &[(u64, Arc<Plan>)]) -> u64 {
        let Some((_, offset)) = self.code.file else { return 0 };
        let at = |of: u64| usertrap::GuestAddr::new(self.code.range.0.wrapping_add(of.wrapping_sub(offset)));
        let mut todo: Vec<(usertrap::GuestAddr, &Plan)> =
            plans.iter().map(|(of, plan)| (at(*of), plan.as_ref())).collect();
        todo.retain(|(site, _)| books.patches.find(*site).is_none());
        let mut patched = 0;
        for part in todo.chunks(AT_ONCE) {
            patched += self.patch_part(books, part);
        }
        patched
    }

    fn patch_part(&self, books: &mut Patcher, part: &[(usertrap::GuestAddr, &Plan)]) -> u64 {
        let mut left = part.to_vec();
        let mut patched = 0;
        for &mode in self.company.modes() {
            // What is prepared is written in the same order: a word's old bytes are those after the patches before.
            let (work, other) = self.prepare(books, &left, mode);
            left = other;
            let all: Vec<&[Step]> = work.iter().map(|work| work.steps.as_slice()).collect();
            let done = self.hands.run_all(&all, &self.code, &mut books.barriers);
            for (work, done) in work.iter().zip(done) {
                if done {
                    books.patches.commit(work.site);
                    patched += 1;
                } else if let Some(removal) = books.patches.remove(work.site, mode) {
                    // The bytes are the guest's again if the stores work, and not what we wrote if they do not.
                    let _ = self.hands.run(&removal.steps, &self.code, &mut books.barriers);
                }
            }
        }
        patched
    }

    /// Prepares what can be written in that mode; gives back what may be written in another.
    fn prepare<'p>(
        &self,
        books: &mut Patcher,
        part: &[(usertrap::GuestAddr, &'p Plan)],
        mode: WriteMode,
    ) -> (Vec<Work>, Vec<(usertrap::GuestAddr, &'p Plan)>) {
        let syshandler = SyshandlerAddr::new(self.space.platform.syshandler());
        let (mut work, mut other) = (Vec::new(), Vec::new());
        let mut bytes = Window::default();
        for (site, plan) in part {
            // Nothing is allocated for these: memory that is given back needs a barrier when it is used again.
            if self.company == Company::RunningWithoutBarriers && plan.padding(*site).is_some() {
                continue;
            }
            let Some(window) = bytes.around(self, books, *site) else { continue };
            let mut memory = books.blocks.with(self.hands, &books.announced);
            match books.patches.prepare(plan, &window, syshandler, mode, &mut memory) {
                Ok(installation)
                    if self.company == Company::RunningWithoutBarriers
                        && installation.steps.contains(&Step::Barrier) =>
                {
                    books.patches.cancel(*site, &mut memory);
                }
                Ok(installation) => work.push(Work { site: *site, steps: installation.steps }),
                Err(InstallError::WrongMode) => other.push((*site, *plan)),
                // Other bytes, a neighbour's bytes, a bound: the site traps, and what happens then is lazy patching.
                Err(_) => {}
            }
        }
        (work, other)
    }
}

/// The guest's bytes, without patches, read for several sites at a time.
#[derive(Default)]
struct Window {
    from: u64,
    bytes: Vec<u8>,
}

impl Window {
    fn around(
        &mut self,
        batch: &Batch<'_>,
        books: &Patcher,
        site: usertrap::GuestAddr,
    ) -> Option<CodeWindow<'_>> {
        let range = batch.code.range;
        let first = range.0.max(site.raw().saturating_sub(SPREAD)) & !7;
        let end = range.1.min(site.raw().saturating_add(SPREAD));
        let have = self.from + self.bytes.len() as u64;
        if self.bytes.is_empty() || first < self.from || end > have {
            let to = range.1.min(first.saturating_add(READ)).max(end);
            self.bytes = vec![0; usize::try_from(to.checked_sub(first)?).ok()?];
            self.from = first;
            if batch.space.read_memory(GuestAddr::new(first), &mut self.bytes).is_err() {
                self.bytes = Vec::new();
                return None;
            }
            books.patches.overlay_original(usertrap::GuestAddr::new(first), &mut self.bytes);
        }
        let (from, to) = ((first - self.from) as usize, (end - self.from) as usize);
        CodeWindow::new(usertrap::GuestAddr::new(first), self.bytes.get(from..to)?, site).ok()
    }
}
