//! Patching of guest code: usertrap's plans, made by the guest's own stub threads.
//!
//! usertrap is pure; this module knows which mappings may be patched ([`code_map`]), reads the code, lets a stub thread
//! make the stores ([`hands`]) and keeps the books of one address space ([`Patcher`]). All stores are made in the stub
//! process with the guest's own rights: a guest that forges their results misleads nobody but itself.
//!
//! A guest's stub thread never runs while its own context patches, but its siblings may: then a patch is one atomic
//! store, or `int3` first with core-serialising barriers; see `usertrap::WriteMode`.

mod announced;
mod batch;
mod code_map;
mod eager;
mod files;
mod hands;
mod invalidate;
mod locate;
mod retired;
mod starved;
mod trampolines;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use usertrap::{
    CodeWindow, FileSite, Hints, InstallError, Limits, PatchMap, Plan, PlanCache, Refusal, SyshandlerAddr,
    WINDOW_AFTER, WINDOW_BEFORE,
};

use announced::Announced;
pub(crate) use announced::ContextKey;
use batch::{Batch, Company};
pub(crate) use code_map::{Code, CodeMap, FileId};
pub(crate) use eager::patch_mapped;
pub(crate) use files::Files;
pub(crate) use hands::Hands;
pub(crate) use invalidate::{
    Change, after_change, before_change, change_later, drop_all, forget_changes, not_changed,
};
pub(crate) use locate::{Found, locate, resume_at};
use retired::Rounds;
use starved::Starved;
use trampolines::Blocks;

use crate::address_space::SpaceInner;
use crate::{GuestAddr, Options, Patching};

/// How many results of planning a platform remembers, for all address spaces.
const PLANS: usize = 64 * 1024;

/// Sites of one address space that are told apart in statistics. A guest chooses its sites.
const MOST_SITES: usize = 1 << 16;

/// The length of the `syscall` instruction.
const SYSCALL_LEN: u64 = 2;

/// Plans by file, so that a shell loop of short processes does not plan its libc again.
pub(crate) type Plans = Mutex<PlanCache<FileSite>>;

pub(crate) fn new_plans() -> Plans {
    Mutex::new(PlanCache::new(PLANS))
}

/// The books of one address space.
#[derive(Debug)]
pub(crate) struct Patcher {
    mode: Patching,
    code: CodeMap,
    patches: PatchMap,
    blocks: Blocks,
    /// The process registered for core-serialising barriers.
    barriers: bool,
    /// Sites that a call came from, by the address behind them.
    executed: HashMap<u64, Executed>,
    limits: Limits,
    rounds: Rounds,
    starved: Starved,
    announced: Announced,
}

/// What came from a site.
#[derive(Debug, Clone, Copy, Default)]
struct Executed {
    /// A call came as a patched one.
    patched: bool,
    /// So many calls trapped.
    traps: u32,
}

impl Patcher {
    pub(crate) fn new(options: &Options) -> Self {
        let limits = Limits { max_trampoline_bytes: options.get_trampoline_bytes(), ..Limits::default() };
        Self {
            mode: options.get_patching(),
            code: CodeMap::default(),
            patches: PatchMap::new(limits),
            blocks: Blocks::default(),
            barriers: false,
            executed: HashMap::new(),
            limits,
            rounds: Rounds::default(),
            starved: Starved::default(),
            announced: Announced::default(),
        }
    }

    /// Whether nothing was ever patched here, so that no instruction pointer needs a look.
    pub(crate) fn is_idle(&self) -> bool {
        self.patches.is_empty() && self.patches.trampoline_bytes() == 0
    }

    pub(crate) fn mode(&self) -> Patching {
        self.mode
    }

    pub(crate) fn set_mode(&mut self, mode: Patching) {
        self.mode = mode;
    }

    pub(crate) fn patched_sites(&self) -> u64 {
        self.patches.len() as u64
    }

    /// Counts a call that trapped; says how many of its site did so far. A site that is not in the books is one too many
    /// for them.
    fn count_trap(&mut self, site: GuestAddr) -> Option<u32> {
        let seen = self.executed.get_mut(&site.raw().wrapping_add(SYSCALL_LEN))?;
        seen.traps = seen.traps.saturating_add(1);
        Some(seen.traps)
    }
}

/// Locks the books.
pub(crate) fn lock(space: &SpaceInner) -> MutexGuard<'_, Patcher> {
    space.patcher.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a site when a call comes from it for the first time, and when one comes as a patched call for the first time.
/// `ip` is the address behind the site.
pub(crate) fn note_site(space: &SpaceInner, ip: GuestAddr, patched: bool) {
    let mut books = lock(space);
    let counters = &space.platform.counters;
    if let Some(seen) = books.executed.get_mut(&ip.raw()) {
        if patched && !std::mem::replace(&mut seen.patched, true) {
            counters.sites_patched.fetch_add(1, Ordering::Relaxed);
        }
    } else if books.executed.len() < MOST_SITES {
        books.executed.insert(ip.raw(), Executed { patched, traps: 0 });
        counters.sites.fetch_add(1, Ordering::Relaxed);
        counters.sites_patched.fetch_add(u64::from(patched), Ordering::Relaxed);
    }
}

/// Patches the site of a call that just trapped, if it can be.
///
/// `hands` is the stub thread of the context that trapped.
pub(crate) fn patch_trapped_site(space: &SpaceInner, hands: &Hands<'_>, site: GuestAddr) -> Outcome {
    let mut books = lock(space);
    let books = &mut *books;
    let at = usertrap::GuestAddr::new(site.raw());
    if books.patches.find(at).is_some() {
        return Outcome::AlreadyPatched;
    }
    if books.mode == Patching::Off || books.patches.refusal(at).is_some() {
        return Outcome::Refused;
    }
    if books.mode == Patching::Lazy
        && let Some(traps) = books.count_trap(site)
    {
        let threshold = space.platform.options.get_patch_after();
        if traps == threshold / 2 {
            space.platform.reaper.prepare_tables();
        }
        if traps < threshold {
            return Outcome::NotYet;
        }
    }
    let Some(code) = books.code.around(site) else { return Outcome::Refused };
    if books.rounds.are_closed() {
        return Outcome::Refused;
    }
    retired::advance(space, books, hands, false);
    if books.starved.sits_out(at.raw(), books.rounds.freed()) {
        retired::advance(space, books, hands, true);
        return Outcome::Refused;
    }
    if patch_known_sites(space, hands, books, code) && books.patches.find(at).is_some() {
        return Outcome::Patched;
    }
    let attempt = Attempt { space, hands, code, site: at };
    match attempt.patch(books) {
        Ok(()) => {
            books.starved.forget(at.raw());
            Outcome::Patched
        }
        Err(Failure::Planned(refusal)) => {
            books.patches.refuse(at, refusal);
            Outcome::Refused
        }
        Err(Failure::NotNow) => Outcome::Refused,
        Err(Failure::NoRoom) => {
            books.starved.note(at.raw(), books.rounds.freed());
            retired::advance(space, books, hands, true);
            Outcome::Refused
        }
    }
}

/// At the first trap in the mapping of a file, patches all sites of it that have trapped before, in any address space:
/// a shell loop of short processes neither plans its libc again nor traps at each site again. Says whether it did
/// anything.
fn patch_known_sites(space: &SpaceInner, hands: &Hands<'_>, books: &mut Patcher, code: Code) -> bool {
    let Some((id, offset)) = code.file.filter(|_| !code.batched) else { return false };
    books.code.set_batched(code.range.0);
    let to = offset.saturating_add(code.range.1 - code.range.0);
    let plans = space.platform.files.lock().unwrap_or_else(PoisonError::into_inner).known_in(&id, offset, to);
    if plans.is_empty() {
        return false;
    }
    Batch { space, hands, code, company: company_of_trapped(space) }.patch(books, &plans) > 0
}

/// Who may be running while a context patches the site at which it trapped.
fn company_of_trapped(space: &SpaceInner) -> Company {
    if space.process.attached_count() <= 1 { Company::None } else { Company::Running }
}

/// Why a site stays as it is.
enum Failure {
    /// For good: remembered.
    Planned(Refusal),
    /// The guest changed its mappings.
    NotNow,
    /// There is no memory for the trampoline, a bound is reached, or threads run that would have to stand.
    NoRoom,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Planned(refusal)
    }
}

/// What came of a trapped site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Patched,
    /// Somebody patched it before: this thread was past the jump, jumped to the `syscall`, or has a foreign %gs.
    AlreadyPatched,
    Refused,
    /// The site has to trap more often first.
    NotYet,
}

/// Why a plan was not carried out.
enum Refused {
    /// Another plan may do.
    OtherPlan,
    NotNow,
    NoRoom,
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NoRoom => Self::NoRoom,
            Refused::OtherPlan | Refused::NotNow => Self::NotNow,
        }
    }
}

struct Attempt<'a> {
    space: &'a SpaceInner,
    hands: &'a Hands<'a>,
    code: Code,
    site: usertrap::GuestAddr,
}

impl Attempt<'_> {
    fn patch(&self, books: &mut Patcher) -> Result<(), Failure> {
        if books.patches.has_retired_near(self.site) {
            retired::advance(self.space, books, self.hands, true);
        }
        let range = self.code.range;
        let first = range.0.max(self.site.raw().saturating_sub(WINDOW_BEFORE as u64));
        let end = range.1.min(self.site.raw().saturating_add(WINDOW_AFTER as u64));
        let mut bytes = vec![0_u8; usize::try_from(end - first).unwrap_or(0)];
        self.space.read_memory(GuestAddr::new(first), &mut bytes).map_err(|_| Failure::NotNow)?;
        let base = usertrap::GuestAddr::new(first);
        books.patches.overlay_original(base, &mut bytes);
        let window = CodeWindow::new(base, &bytes, self.site).map_err(|_| Failure::NotNow)?;
        let plan = self.plan_for_file(&window)?;
        match self.install(books, &plan, &window) {
            // The plan was made for other bytes of the same file, or without the patches that are here.
            Err(Refused::OtherPlan) => {
                let occupied = books.patches.occupied_near(self.site);
                let hints = Hints { site_executed: true, occupied: &occupied, ..Hints::default() };
                let plan = match usertrap::plan(&window, &hints) {
                    // Once the padding is free again there may be another plan.
                    Err(_) if books.patches.has_retired_near(self.site) => return Err(Failure::NoRoom),
                    result => result?,
                };
                Ok(self.install(books, &plan, &window)?)
            }
            other => Ok(other?),
        }
    }

    /// Plans the site as if it were the only one, so that the plan serves whatever else is patched; or finds what was
    /// planned for the same bytes of the same file before.
    fn plan_for_file(&self, window: &CodeWindow<'_>) -> Result<Arc<Plan>, Refusal> {
        let key = self.code.file_site(self.site.raw());
        let plans = || self.space.platform.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = &key
            && let Some(result) = plans().get(key)
        {
            return result;
        }
        let hints = Hints { site_executed: true, ..Hints::default() };
        let result = usertrap::plan(window, &hints).map(Arc::new);
        if let Some(key) = key {
            plans().insert(key, result.clone());
            if let (Ok(plan), Some((id, _))) = (&result, self.code.file) {
                let mut files = self.space.platform.files.lock().unwrap_or_else(PoisonError::into_inner);
                files.learn(id, key.offset, Arc::clone(plan));
            }
        }
        result
    }

    /// Makes the patch.
    fn install(&self, books: &mut Patcher, plan: &Plan, window: &CodeWindow<'_>) -> Result<(), Refused> {
        let syshandler = SyshandlerAddr::new(self.space.platform.syshandler());
        for &mode in company_of_trapped(self.space).modes() {
            let mut memory = books.blocks.with(self.hands, &books.announced);
            match books.patches.prepare(plan, window, syshandler, mode, &mut memory) {
                Ok(installation) => {
                    let run = self.hands.run(&installation.steps, &self.code, &mut books.barriers);
                    if run.is_ok() {
                        books.patches.commit(self.site);
                        return Ok(());
                    }
                    self.give_up(books, mode);
                    return Err(Refused::NotNow);
                }
                Err(InstallError::WrongMode) => {}
                Err(InstallError::BytesChanged | InstallError::Overlaps) => return Err(Refused::OtherPlan),
                Err(InstallError::Arena(_) | InstallError::TooManySites) => return Err(Refused::NoRoom),
                Err(_) => return Err(Refused::NotNow),
            }
        }
        // No way to write it while others run.
        Err(Refused::NoRoom)
    }

    /// A store failed: restore what may have been written.
    fn give_up(&self, books: &mut Patcher, mode: usertrap::WriteMode) {
        if let Some(removal) = books.patches.remove(self.site, mode) {
            // The bytes are the guest's again if the stores work, and not what we wrote if they do not.
            let _ = self.hands.run(&removal.steps, &self.code, &mut books.barriers);
        }
    }
}
