//! Capabilities (capabilities(7), security/commoncap.c).

use super::Credentials;
use crate::sentry::errno::Errno;

/// Capabilities that the kernel's interface has room for.
pub(super) const MOST_CAPABILITIES: u32 = 64;

/// The sets of a task, a bit for each capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CapabilitySets {
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) bounding: u64,
    pub(crate) ambient: u64,
}

/// Numbers of the capabilities that the sentry itself looks at.
pub(crate) mod cap {
    pub(crate) const KILL: u32 = 5;
    pub(crate) const SETGID: u32 = 6;
    pub(crate) const SETUID: u32 = 7;
    pub(crate) const SETPCAP: u32 = 8;
    pub(crate) const IPC_LOCK: u32 = 14;
    pub(crate) const SYS_ADMIN: u32 = 21;
    pub(crate) const SYS_NICE: u32 = 23;
    pub(crate) const SYS_RESOURCE: u32 = 24;
}

/// `CAP_FS_SET`: what follows the file system user id. CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID,
/// LINUX_IMMUTABLE, MKNOD, MAC_OVERRIDE.
const FILE_CAPABILITIES: u64 = 0x1f | 1 << 9 | 1 << 27 | 1 << 32;

/// `PR_SET_SECUREBITS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Securebits(pub(crate) u32);

impl Securebits {
    pub(crate) const NO_ROOT: u32 = 1;
    pub(crate) const NO_SETUID_FIXUP: u32 = 1 << 2;
    pub(crate) const KEEP_CAPS: u32 = 1 << 4;
    pub(crate) const KEEP_CAPS_LOCKED: u32 = 1 << 5;
    pub(crate) const NO_CAP_AMBIENT_RAISE: u32 = 1 << 6;
    /// The pairs of flag and lock that exist: root, setuid fix-up, keep capabilities, ambient raise, and the two pairs
    /// for the execution of scripts.
    const KNOWN: u32 = 0xfff;
    const LOCKS: u32 = 0xaaa;

    pub(crate) fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }

    pub(crate) fn with(self, bit: u32) -> Self {
        Self(self.0 | bit)
    }

    pub(crate) fn without(self, bit: u32) -> Self {
        Self(self.0 & !bit)
    }
}

fn is_subset(small: u64, large: u64) -> bool {
    small & !large == 0
}

impl Credentials {
    /// Whether a capability is in the effective set.
    pub(crate) fn has(&self, capability: u32) -> bool {
        self.caps.effective >> capability & 1 != 0
    }

    /// capset(2).
    pub(crate) fn set_capabilities(
        &mut self,
        effective: u64,
        permitted: u64,
        inheritable: u64,
    ) -> Result<(), Errno> {
        let old = self.caps;
        // Bits of no capability are dropped without a word, as in the kernel.
        let valid = old.permitted | old.bounding | old.inheritable;
        let valid = valid | (1_u64 << (64 - valid.leading_zeros())).wrapping_sub(1);
        let [effective, permitted, inheritable] = [effective, permitted, inheritable].map(|set| set & valid);
        let inheritable_capped = !self.has(cap::SETPCAP);
        if inheritable_capped && !is_subset(inheritable, old.inheritable | old.permitted)
            || !is_subset(inheritable, old.inheritable | old.bounding)
            || !is_subset(permitted, old.permitted)
            || !is_subset(effective, permitted)
        {
            return Err(Errno::EPERM);
        }
        self.caps = CapabilitySets {
            effective,
            permitted,
            inheritable,
            ambient: old.ambient & permitted & inheritable,
            ..old
        };
        Ok(())
    }

    /// `prctl(PR_CAPBSET_DROP)`.
    pub(crate) fn drop_bounding(&mut self, capability: u32) -> Result<(), Errno> {
        if !self.has(cap::SETPCAP) {
            return Err(Errno::EPERM);
        }
        self.caps.bounding &= !(1 << capability);
        Ok(())
    }

    /// `prctl(PR_SET_SECUREBITS)`.
    pub(crate) fn set_securebits(&mut self, bits: u64) -> Result<(), Errno> {
        let old = self.securebits.0;
        let new = u32::try_from(bits).map_err(|_| Errno::EPERM)?;
        let touches_locked = (old & Securebits::LOCKS) >> 1 & (old ^ new) != 0;
        let unlocks = old & Securebits::LOCKS & !new != 0;
        if touches_locked || unlocks || new & !Securebits::KNOWN != 0 || !self.has(cap::SETPCAP) {
            return Err(Errno::EPERM);
        }
        self.securebits = Securebits(new);
        Ok(())
    }

    /// `prctl(PR_SET_KEEPCAPS)`.
    pub(crate) fn keep_capabilities(&mut self, keep: u64) -> Result<(), Errno> {
        if keep > 1 {
            return Err(Errno::EINVAL);
        }
        if self.securebits.has(Securebits::KEEP_CAPS_LOCKED) {
            return Err(Errno::EPERM);
        }
        self.securebits = match keep {
            1 => self.securebits.with(Securebits::KEEP_CAPS),
            _ => self.securebits.without(Securebits::KEEP_CAPS),
        };
        Ok(())
    }

    /// `prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE)`.
    pub(crate) fn raise_ambient(&mut self, capability: u32) -> Result<(), Errno> {
        let bit = 1_u64 << capability;
        let allowed = self.caps.permitted & self.caps.inheritable & bit != 0
            && !self.securebits.has(Securebits::NO_CAP_AMBIENT_RAISE);
        if !allowed {
            return Err(Errno::EPERM);
        }
        self.caps.ambient |= bit;
        Ok(())
    }

    /// What a change of user ids does to the sets (`cap_emulate_setxuid`).
    pub(super) fn follow_user_ids(&mut self, old: &Credentials) {
        if self.securebits.has(Securebits::NO_SETUID_FIXUP) {
            return;
        }
        if old.user.has(0) && !self.user.has(0) {
            if !self.securebits.has(Securebits::KEEP_CAPS) {
                self.caps.permitted = 0;
                self.caps.effective = 0;
            }
            self.caps.ambient = 0;
        }
        match (old.user.effective, self.user.effective) {
            (0, 0) => {}
            (0, _) => self.caps.effective = 0,
            (_, 0) => self.caps.effective = self.caps.permitted,
            _ => {}
        }
    }

    /// What a change of the file system user id alone does (`cap_task_fix_setuid`).
    pub(super) fn follow_fs_user_id(&mut self, old: u32) {
        if self.securebits.has(Securebits::NO_SETUID_FIXUP) {
            return;
        }
        match (old, self.user.fs) {
            (0, 0) => {}
            (0, _) => self.caps.effective &= !FILE_CAPABILITIES,
            (_, 0) => self.caps.effective |= self.caps.permitted & FILE_CAPABILITIES,
            _ => {}
        }
    }
}
