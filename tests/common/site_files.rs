//! The fixture files full of sites, mapped into address spaces and called site by site.
#![allow(dead_code, reason = "each test crate uses a part")]

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

use systrap::{AddressSpace, Context, Event, GuestAddr, PAGE_SIZE, Protection, Sharing, Syscall, Systrap};

/// Where the fixture files are linked.
pub const LINKED: GuestAddr = GuestAddr::new(0x40_0000);
/// Memory that every register of a guest points into.
pub const DATA: GuestAddr = GuestAddr::new(0x7000_0000);
const DATA_LEN: u64 = 4 * PAGE_SIZE;

/// A site as the file knows it.
#[derive(Debug, Clone, Copy)]
pub struct Site {
    /// Offset of the `syscall` in the file.
    pub offset: u64,
    /// Offset of the first instruction that the trampoline runs, or of the `syscall`.
    pub entry: u64,
    /// 1 to 3.
    pub tier: u8,
}

/// A file with sites.
#[derive(Debug)]
pub struct SiteFile {
    pub path: PathBuf,
    pub bytes: Vec<u8>,
}

impl SiteFile {
    /// The committed fixture of that name.
    pub fn fixture(name: &str) -> Self {
        Self::at(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/sites").join(format!("{name}.elf")))
    }

    /// Any file.
    pub fn at(path: PathBuf) -> Self {
        let bytes = std::fs::read(&path).expect("the file is readable");
        Self { path, bytes }
    }

    /// Those of its sites that a scan finds a plan for, ascending.
    pub fn planned(&self) -> Vec<Site> {
        let scan = usertrap::scan(&self.bytes).expect("an ELF file");
        let plans = scan.sites.iter().filter_map(|site| Some((site.file_offset, site.result.as_ref().ok()?)));
        let sites = plans.map(|(offset, plan)| Site {
            offset,
            entry: offset.wrapping_add_signed(plan.head().into()),
            tier: plan.tier().number(),
        });
        sites.collect()
    }

    fn len(&self) -> u64 {
        (self.bytes.len() as u64).next_multiple_of(PAGE_SIZE)
    }

    /// Maps the whole file.
    pub fn map(&self, space: &AddressSpace, base: GuestAddr, prot: Protection, sharing: Sharing) {
        let file = File::open(&self.path).expect("the file can be opened");
        space.map_file(base, self.len(), file.as_fd(), 0, prot, sharing).expect("the file is mapped");
    }

    /// Maps the whole file as a linker maps its text.
    pub fn map_text(&self, space: &AddressSpace, base: GuestAddr) {
        self.map(space, base, Protection::READ_EXECUTE, Sharing::Private);
    }

    /// Changes the protection of the mapping.
    pub fn protect(&self, space: &AddressSpace, base: GuestAddr, prot: Protection) {
        space.protect(base, self.len(), prot).expect("the mapping is there");
    }

    /// What the mapping holds.
    pub fn mapped_bytes(&self, space: &AddressSpace, base: GuestAddr) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes.len()];
        space.read(base, &mut bytes).expect("the mapping is readable");
        bytes
    }
}

/// A context that can be sent to any site of `space`.
pub fn caller(platform: &Systrap, space: &AddressSpace) -> Context {
    space.map_anonymous(DATA, DATA_LEN, Protection::READ_WRITE).expect("data is mapped");
    platform.new_context().expect("a context")
}

/// Sends the context to an address, which has to lead to a call, and returns that.
pub fn call_from(context: &mut Context, space: &AddressSpace, rip: GuestAddr) -> Syscall {
    context.pull_full_state().expect("the state is there");
    let middle = DATA.raw() + DATA_LEN / 2;
    let regs = context.registers_mut();
    regs.rip = rip.raw();
    for register in [
        &mut regs.rax,
        &mut regs.rbx,
        &mut regs.rcx,
        &mut regs.rdx,
        &mut regs.rsi,
        &mut regs.rdi,
        &mut regs.rbp,
        &mut regs.rsp,
        &mut regs.r8,
        &mut regs.r9,
        &mut regs.r10,
        &mut regs.r12,
        &mut regs.r13,
        &mut regs.r14,
        &mut regs.r15,
    ] {
        *register = middle;
    }
    match context.switch(space) {
        Ok(Event::Syscall(call)) => call,
        other => panic!("a call was expected from {rip:?}, not {other:?}"),
    }
}
