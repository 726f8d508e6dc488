//! What patching means for an event: sites are patched when they trap, and instruction pointers in trampolines are
//! turned into the guest's before anybody sees them.

use systrap_stub::wire;

use super::{Context, Stop};
use crate::patching::{self, Found, Hands, Outcome};
use crate::subprocess::Attention;
use crate::{Arch, Entry, Event, GuestAddr, Patching, Signal, SwitchError, Syscall};

/// What becomes of what the stub reported.
pub(super) enum Settled {
    /// The embedder's business.
    Event(Event),
    /// The platform's own: the guest goes on by this reply.
    GoOn(u32),
}

impl Context {
    pub(super) fn settle(&mut self, event: Event) -> Result<Settled, SwitchError> {
        match event {
            Event::Syscall(call) => {
                self.attention.turns().end();
                self.note_site(call.ip, call.entry);
                if call.entry == Entry::Trapped && call.arch == Arch::X86_64 {
                    self.patch_site(&call);
                }
                Ok(Settled::Event(event))
            }
            Event::Signal(signal) => self.settle_signal(signal),
            Event::Interrupted => self.settle_interrupt(),
        }
    }

    /// Counts the site of a call if it was not seen before. `ip` is the address behind the site.
    fn note_site(&mut self, ip: GuestAddr, entry: Entry) {
        let patched = entry == Entry::Patched;
        if self.recent_sites.is_new(ip.raw(), patched)
            && let Some(home) = &self.home
        {
            patching::note_site(&home.space, ip, patched);
        }
    }

    fn patch_site(&mut self, call: &Syscall) {
        let Some(home) = &self.home else { return };
        let hands = Hands::new(&self.platform, &home.thread);
        let site = GuestAddr::new(call.ip.raw().wrapping_sub(2));
        let outcome = patching::patch_trapped_site(&home.space, &hands, site);
        if outcome == Outcome::AlreadyPatched && self.has_foreign_gs() {
            // Every call would fault in the syshandler before it traps.
            patching::drop_all(&home.space, Patching::Off);
        }
    }

    fn has_foreign_gs(&self) -> bool {
        self.home.as_ref().is_some_and(|home| {
            let gs_base = home.thread.sysmsg().gs_base.load(std::sync::atomic::Ordering::Relaxed);
            gs_base != home.thread.stub_addr()
        })
    }

    fn settle_signal(&mut self, signal: Signal) -> Result<Settled, SwitchError> {
        let trap = signal.signo == libc::SIGTRAP;
        match self.locate(signal.ip, trap) {
            Found::Guest => {
                self.attention.turns().end();
                Ok(Settled::Event(Event::Signal(signal)))
            }
            Found::OwnBreakpoint(at) => self.go_on_at(at),
            // A single step into a trampoline: the guest steps through its own code instead.
            Found::At(at) if trap => {
                self.drop_patches();
                self.go_on_at(at)
            }
            Found::At(at) => {
                self.leave_trampoline(at)?;
                Ok(Settled::Event(Event::Signal(Signal { ip: at, ..signal })))
            }
            Found::Call(ret) => {
                self.drop_patches();
                self.make_call(ret)
            }
        }
    }

    fn settle_interrupt(&mut self) -> Result<Settled, SwitchError> {
        let Some(home) = &self.home else { return Err(SwitchError::BadState { what: "no stub thread" }) };
        let rip = GuestAddr::new(home.thread.sysmsg().line.rip.load(std::sync::atomic::Ordering::Relaxed));
        // At the `syscall` of a call that was passed on, where a patch may have put something else.
        let moved = patching::resume_at(&home.space, rip.raw()) != rip.raw();
        let seen = self.attention.get();
        if seen & Attention::INTERRUPT == 0 {
            // It is to step aside, or this is an interrupt signal that came after its interrupt had been reported.
            let aside = seen & Attention::STEP_ASIDE != 0 && self.attention.take(Attention::STEP_ASIDE);
            return if moved { self.go_on_at(rip) } else { self.step_aside(rip, aside) };
        }
        if moved {
            self.leave_trampoline(rip)?;
            self.attention.take(Attention::INTERRUPT);
            return Ok(Settled::Event(Event::Interrupted));
        }
        match self.locate(rip, false) {
            Found::Guest | Found::OwnBreakpoint(_) => self.attention.turns().end(),
            Found::At(at) => self.leave_trampoline(at)?,
            // The call is as good as made: it is the event, and the interrupt stays pending.
            Found::Call(ret) => return self.make_call(ret),
        }
        self.attention.take(Attention::INTERRUPT);
        Ok(Settled::Event(Event::Interrupted))
    }

    /// Lets an interrupted guest go on, and not in a trampoline if it was asked `aside`.
    fn step_aside(&mut self, rip: GuestAddr, aside: bool) -> Result<Settled, SwitchError> {
        if !aside {
            return Ok(Settled::GoOn(wire::RESUME));
        }
        match self.locate(rip, false) {
            Found::Guest | Found::OwnBreakpoint(_) => {
                self.attention.turns().begin();
                Ok(Settled::GoOn(wire::RESUME))
            }
            Found::At(at) => self.go_on_at(at),
            Found::Call(ret) => self.make_call(ret),
        }
    }

    fn locate(&self, rip: GuestAddr, breakpoint: bool) -> Found {
        match &self.home {
            Some(home) => patching::locate(&home.space, rip, breakpoint),
            None => Found::Guest,
        }
    }

    fn drop_patches(&self) {
        if let Some(home) = &self.home {
            let mode = patching::lock(&home.space).mode();
            patching::drop_all(&home.space, mode);
        }
    }

    /// Makes a guest that stopped in a trampoline one that stopped at an address of its own: there is no telling how
    /// long it stands, and the trampoline must not have to wait for it.
    fn leave_trampoline(&mut self, at: GuestAddr) -> Result<(), SwitchError> {
        self.pull_full_state()?;
        self.full.regs.rip = at.raw();
        self.changed = true;
        self.attention.turns().end();
        Ok(())
    }

    /// Lets the guest go on at an address of its own, with all else as it is.
    fn go_on_at(&mut self, at: GuestAddr) -> Result<Settled, SwitchError> {
        self.pull_full_state()?;
        self.full.regs.rip = at.raw();
        self.load_state()?;
        // A new turn: it has been outside.
        self.attention.turns().begin();
        Ok(Settled::GoOn(wire::RESUME_FULL))
    }

    /// Makes an event of a call whose trampoline was left after rcx had become the return address.
    fn make_call(&mut self, ret: GuestAddr) -> Result<Settled, SwitchError> {
        self.pull_full_state()?;
        let regs = &mut self.full.regs;
        let nr = regs.rax as u32;
        let args = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9];
        regs.rip = ret.raw();
        regs.rcx = ret.raw();
        regs.r11 = regs.rflags;
        self.result = -i64::from(libc::ENOSYS);
        regs.rax = self.result as u64;
        self.changed = true;
        self.counts.local.count_patched();
        self.note_site(ret, Entry::Patched);
        if let Some(home) = &mut self.home {
            home.stop = Stop::Call;
        }
        self.attention.turns().end();
        let (arch, entry) = (Arch::X86_64, Entry::Patched);
        Ok(Settled::Event(Event::Syscall(Syscall { nr, args, ip: ret, arch, entry })))
    }
}
