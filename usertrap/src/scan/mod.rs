//! Offline: what patching would do to an ELF file, site by site (feature `elf`).
//!
//! Any bytes may be given: the file is read defensively, and time and memory are bounded by its length.

mod functions;
mod image;
mod report;
mod sweep;

use image::{Code, Image};
use std::fmt;
use sweep::Named;

use crate::addr::{GuestAddr, GuestRange};
use crate::patch_map::bytes_used;
use crate::plan::{Plan, Refusal};
use crate::planner::{plan, probable_line};
use crate::window::{CodeWindow, Hints, KnownFunction, SYSCALL, WINDOW_AFTER, WINDOW_BEFORE};

/// Functions are shown to the planner whole when they are no longer than this on either side of the site.
const FUNCTION_MAX: i64 = 8 * 1024;

/// Places with the bytes `0f 05` that are looked at; a libc has 500, an honest 200 MB program a few thousand.
const MAX_CANDIDATES: usize = 16 * 1024;

/// Why a file cannot be scanned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// Not an ELF64 little-endian file that can be read.
    #[error("not a readable ELF64 file")]
    Malformed {
        /// What the reader says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// For another processor.
    #[error("not for x86-64")]
    NotX86_64,
}

impl ScanError {
    fn malformed(source: object::Error) -> Self {
        Self::Malformed { source: source.into() }
    }
}

/// One `syscall` instruction of a file.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ScannedSite {
    /// Its address as the file is linked.
    pub site: GuestAddr,
    /// Its offset in the file.
    pub file_offset: u64,
    /// Symbol of the function around it.
    pub function: Option<String>,
    /// What would be done about it.
    pub result: Result<Plan, Refusal>,
    /// Whether gVisor's rule, the bytes `b8 imm32` in front, reaches it.
    pub gvisor: GvisorRule,
    known: Option<KnownFunction>,
}

/// What gVisor's usertrap makes of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GvisorRule {
    /// The bytes in front are not `b8 imm32`.
    NoMatch,
    /// They are, and they are a `mov eax, imm32`.
    Patches,
    /// They are the end of another instruction, which would be destroyed (google/gvisor#10849).
    FalseMatch,
}

/// All sites of a file.
#[non_exhaustive]
pub struct Scan<'a> {
    image: Image<'a>,
    named: Named,
    /// `syscall` instructions, by address: those that trusted decoding reaches, and those it cannot decide on.
    pub sites: Vec<ScannedSite>,
    /// Places with the bytes of a `syscall` that are proved not to be one.
    pub not_instructions: Vec<GuestAddr>,
    /// Whether the file has more candidates than are looked at.
    pub truncated: bool,
}

impl fmt::Debug for Scan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scan")
            .field("sites", &self.sites)
            .field("not_instructions", &self.not_instructions)
            .field("truncated", &self.truncated)
            .finish_non_exhaustive()
    }
}

/// Plans every site of an ELF64 file for x86-64.
///
/// # Errors
/// When the bytes are no such file.
pub fn scan(data: &[u8]) -> Result<Scan<'_>, ScanError> {
    let image = Image::parse(data)?;
    let mut candidates: Vec<GuestAddr> = image
        .code
        .iter()
        .flat_map(|c| {
            let pairs = c.bytes.windows(SYSCALL.len()).enumerate();
            pairs.filter(|(_, w)| *w == SYSCALL).map(|(i, _)| c.addr.wrapping_offset(i as i64))
        })
        .take(MAX_CANDIDATES + 1)
        .collect();
    let truncated = candidates.len() > MAX_CANDIDATES;
    candidates.truncate(MAX_CANDIDATES);
    let named = sweep::named_near(&image, &candidates);
    let mut scan = Scan { image, named, sites: vec![], not_instructions: vec![], truncated };
    let mut occupied: Vec<GuestRange> = vec![];
    for site in candidates {
        match scan.site(site, &occupied) {
            Some(scanned) => {
                if let Ok(plan) = &scanned.result {
                    occupied.extend(bytes_used(plan, site));
                }
                scan.sites.push(scanned);
            }
            None => scan.not_instructions.push(site),
        }
        // Patches are near their sites, and sites ascend.
        let behind = GuestAddr::new(site.raw().saturating_sub(1024));
        occupied.retain(|o| o.end > behind);
    }
    Ok(scan)
}

impl<'a> Scan<'a> {
    /// Sites planned for a tier, 1 to 3; tier 4 are those refused.
    #[must_use]
    pub fn count(&self, tier: u8) -> usize {
        self.sites.iter().filter(|s| s.result.as_ref().map_or(4, |p| p.tier().number()) == tier).count()
    }

    /// Sites that gVisor's rule patches, false matches not counted.
    #[must_use]
    pub fn gvisor_count(&self) -> usize {
        self.sites.iter().filter(|s| s.gvisor == GvisorRule::Patches).count()
    }

    fn site(&self, site: GuestAddr, occupied: &[GuestRange]) -> Option<ScannedSite> {
        let function = self.image.function_of(site);
        let known = function.map(|f| f.known());
        let (window, code) = self.window(site, known)?;
        let hints = Hints {
            function: known,
            targets: around(&self.named.targets, site),
            targets_complete: true,
            data: around(&self.named.data, site),
            occupied,
            ..Hints::default()
        };
        let result = plan(&window, &hints);
        if matches!(result, Err(Refusal::NotAnInstruction(_) | Refusal::NotSyscall)) {
            return None;
        }
        let file_offset = code.file_offset.saturating_add(code.addr.distance_to(site) as u64);
        // A symbol without a size says where something begins, not what the site belongs to.
        let name = function.filter(|f| f.end.is_some()).and_then(|f| f.name).map(str::to_owned);
        let gvisor = Self::gvisor_rule(&window, &hints);
        Some(ScannedSite { site, file_offset, function: name, result, gvisor, known })
    }

    /// The code around a site, with its whole function if that is not too long.
    fn window(&self, site: GuestAddr, known: Option<KnownFunction>) -> Option<(CodeWindow<'a>, &Code<'a>)> {
        let i = self.image.code.partition_point(|c| c.addr <= site).checked_sub(1)?;
        let code = &self.image.code[i];
        let within =
            |at: Option<GuestAddr>| at.map(|at| site.distance_to(at)).filter(|d| d.abs() <= FUNCTION_MAX);
        let before = within(known.map(|k| k.start)).unwrap_or(0).min(-(WINDOW_BEFORE as i64));
        let after = within(known.and_then(|k| k.end)).unwrap_or(0).max(WINDOW_AFTER as i64);
        let start = site.wrapping_offset(before.max(site.distance_to(code.addr)));
        let bytes = code.at(start, (after + start.distance_to(site)) as usize)?;
        Some((CodeWindow::new(start, bytes, site).ok()?, code))
    }

    fn gvisor_rule(window: &CodeWindow<'_>, hints: &Hints<'_>) -> GvisorRule {
        if window.get(-5, 1) != Some(&[0xb8]) {
            GvisorRule::NoMatch
        } else if probable_line(window, hints, WINDOW_BEFORE as i32).contains(&-5) {
            GvisorRule::Patches
        } else {
            GvisorRule::FalseMatch
        }
    }

    fn line(&self, site: &ScannedSite, before: i32) -> Option<(CodeWindow<'a>, Vec<i32>)> {
        let (window, _) = self.window(site.site, site.known)?;
        let hints = Hints { function: site.known, ..Hints::default() };
        Some((window, probable_line(&window, &hints, before)))
    }
}

/// Those of the addresses (ascending) that a window around the site holds.
fn around(addresses: &[GuestAddr], site: GuestAddr) -> &[GuestAddr] {
    let from = addresses.partition_point(|t| *t < site.wrapping_offset(-(WINDOW_BEFORE as i64)));
    let to = addresses.partition_point(|t| *t < site.wrapping_offset(WINDOW_AFTER as i64));
    addresses.get(from..to).unwrap_or_default()
}
