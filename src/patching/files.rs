//! What is known of files: the plans of their sites, by offset, so that each file is planned once for all mappings.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use usertrap::Plan;

use super::code_map::FileId;

/// Files that are remembered; the one that was not used for longest is forgotten first.
const MAX_FILES: usize = 256;
/// Plans that are remembered, of all files together: some 30 MB.
const MAX_PLANS: usize = 128 * 1024;

/// The files of a platform.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// The last one was used last.
    files: VecDeque<File>,
    plans: usize,
}

#[derive(Debug)]
struct File {
    id: FileId,
    state: Knowledge,
    plans: BTreeMap<u64, Arc<Plan>>,
}

/// How much is known of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Knowledge {
    /// The sites that trapped in some address space.
    Executed,
    /// All sites.
    Scanned,
    /// It cannot be scanned.
    Unreadable,
}

impl Files {
    /// How much is known of a file.
    pub(super) fn knowledge(&mut self, id: &FileId) -> Option<Knowledge> {
        self.touch(id).map(|file| file.state)
    }

    /// A site was planned because it trapped.
    pub(super) fn learn(&mut self, id: FileId, offset: u64, plan: Arc<Plan>) {
        self.add(id, None, vec![(offset, plan)]);
    }

    /// The file was scanned, or cannot be.
    pub(super) fn scanned(&mut self, id: FileId, plans: Option<Vec<(u64, Arc<Plan>)>>) {
        let state = if plans.is_some() { Knowledge::Scanned } else { Knowledge::Unreadable };
        self.add(id, Some(state), plans.unwrap_or_default());
    }

    /// The plans of a part of a file, by offset of the site.
    pub(super) fn known_in(&mut self, id: &FileId, from: u64, to: u64) -> Vec<(u64, Arc<Plan>)> {
        let Some(file) = self.touch(id).filter(|_| from < to) else { return Vec::new() };
        file.plans.range(from..to).map(|(offset, plan)| (*offset, Arc::clone(plan))).collect()
    }

    fn touch(&mut self, id: &FileId) -> Option<&mut File> {
        let at = self.files.iter().rposition(|file| file.id == *id)?;
        if at + 1 != self.files.len() {
            let file = self.files.remove(at)?;
            self.files.push_back(file);
        }
        self.files.back_mut()
    }

    fn add(&mut self, id: FileId, state: Option<Knowledge>, plans: Vec<(u64, Arc<Plan>)>) {
        if self.touch(&id).is_none() {
            self.files.push_back(File { id, state: Knowledge::Executed, plans: BTreeMap::new() });
        }
        if let Some(file) = self.files.back_mut() {
            let before = file.plans.len();
            file.plans.extend(plans);
            file.state = state.unwrap_or(file.state);
            self.plans += file.plans.len() - before;
        }
        while self.files.len() > MAX_FILES || (self.plans > MAX_PLANS && self.files.len() > 1) {
            let Some(gone) = self.files.pop_front() else { return };
            self.plans -= gone.plans.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(inode: u64) -> FileId {
        FileId { device: 1, inode, size_bytes: 3, mtime_ns: 4 }
    }

    fn plan() -> Arc<Plan> {
        let code = [0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xc3];
        let (start, site) = (usertrap::GuestAddr::new(0x1000), usertrap::GuestAddr::new(0x1005));
        let window = usertrap::CodeWindow::new(start, &code, site).unwrap();
        let function = Some(usertrap::KnownFunction { start, end: None });
        let hints = usertrap::Hints { site_executed: true, function, ..Default::default() };
        Arc::new(usertrap::plan(&window, &hints).unwrap())
    }

    #[test]
    fn plans_are_found_by_file_and_range() {
        let (mut files, plan) = (Files::default(), plan());
        files.scanned(id(1), Some(vec![(0x10, Arc::clone(&plan)), (0x20, Arc::clone(&plan))]));
        files.learn(id(2), 0x30, plan);
        assert_eq!(files.known_in(&id(1), 0x11, 0x40).len(), 1);
        assert_eq!(files.known_in(&id(2), 0, 0x40).len(), 1);
        assert!(files.known_in(&id(2), 0x40, 0).is_empty(), "an empty range");
        assert_eq!(files.knowledge(&id(1)), Some(Knowledge::Scanned));
        assert_eq!(files.knowledge(&id(2)), Some(Knowledge::Executed));
        files.scanned(id(2), None);
        assert_eq!(files.knowledge(&id(2)), Some(Knowledge::Unreadable));
        assert_eq!(files.knowledge(&id(3)), None);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_used_stay() {
        let (mut files, plan) = (Files::default(), plan());
        files.learn(id(0), 0, Arc::clone(&plan));
        for inode in 1..2_000 {
            let plans = (0..200).map(|offset| (offset, Arc::clone(&plan))).collect();
            files.scanned(id(inode), Some(plans));
            assert_eq!(files.known_in(&id(0), 0, 1).len(), 1, "after {inode}");
            assert!(files.files.len() <= MAX_FILES && files.plans <= MAX_PLANS);
        }
        assert_eq!(files.plans, files.files.iter().map(|file| file.plans.len()).sum::<usize>());
    }
}
