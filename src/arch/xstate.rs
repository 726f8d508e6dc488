//! The xsave image: its size and features on this machine, and how one from a stub is made safe to load.
//!
//! # Safety
//!
//! CPUID and XGETBV are always safe to execute once CPUID said that XGETBV exists and is enabled.
#![allow(unsafe_code)]

use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

use systrap_stub::sysmsg::XSTATE_LEN;

use crate::Error;

/// Length of the fxsave part and of the xsave header behind it, in bytes.
const LEGACY_LEN: usize = 512;
const HEADER_LEN: usize = 64;
/// Software bytes of a signal frame (arch/x86/include/uapi/asm/sigcontext.h, `struct _fpx_sw_bytes`).
const SW_BYTES: usize = 464;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// AMX tile data needs a permission that stub processes do not ask for.
const XTILEDATA: u64 = 1 << 18;
const PKRU: u32 = 9;
/// `init_pkru_value` of the kernel: only key 0 is accessible.
const INIT_PKRU: u32 = 0x5555_5554;

/// What this machine's xsave images look like in a signal frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    features: u64,
    len: usize,
    mxcsr_mask: u32,
    pkru_offset: Option<usize>,
}

impl Layout {
    /// Asks the CPU.
    pub(crate) fn detect() -> Result<Self, Error> {
        let leaf1 = __cpuid(1);
        const OSXSAVE: u32 = 1 << 27;
        if leaf1.ecx & OSXSAVE == 0 {
            return Err(Error::Unsupported { what: "xsave", remedy: "use an x86-64 CPU made after 2011" });
        }
        // SAFETY: OSXSAVE says that XGETBV exists and that the kernel enabled it.
        let features = unsafe { xgetbv0() } & !XTILEDATA;
        let mut len = LEGACY_LEN + HEADER_LEN;
        let mut pkru_offset = None;
        for feature in 2..63_u32 {
            if features & (1 << feature) != 0 {
                let leaf = __cpuid_count(0xd, feature);
                len = len.max((leaf.eax + leaf.ebx) as usize);
                if feature == PKRU {
                    pkru_offset = Some(leaf.ebx as usize);
                }
            }
        }
        if len + 4 > XSTATE_LEN {
            let remedy = "report this CPU: its vector state is larger than the sysmsg area";
            return Err(Error::Unsupported { what: "room for the xsave image", remedy });
        }
        let mxcsr_mask = match fxsave_mxcsr_mask() {
            0 => 0xffbf,
            mask => mask,
        };
        Ok(Self { features, len, mxcsr_mask, pkru_offset })
    }

    /// Length of an image in bytes, without the second magic number of a signal frame.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Length of the buffer in 64-bit words that holds an image with its second magic number.
    pub(crate) fn words(&self) -> usize {
        (self.len + 4).div_ceil(8)
    }

    /// The image of a new program: x87 and SSE control words and PKRU as the kernel sets them at exec.
    pub(crate) fn initial(&self) -> Vec<u64> {
        let mut image = vec![0_u64; self.words()];
        let bytes = Bytes(&mut image);
        let mut bytes = bytes;
        bytes.put_u32(0, 0x037f);
        bytes.put_u32(24, 0x1f80);
        bytes.put_u32(28, self.mxcsr_mask);
        let mut present = 0_u64;
        if let Some(offset) = self.pkru_offset {
            bytes.put_u32(offset, INIT_PKRU);
            present |= 1 << PKRU;
        }
        bytes.put_u64(LEGACY_LEN, present);
        self.sanitise(&mut image);
        image
    }

    /// Makes an image loadable whatever it holds: a fault during xrstor would be taken for a broken stub.
    ///
    /// Intel SDM 1, 13.8.1: reserved header bytes and MXCSR bits must be 0, XCOMP_BV is 0 for the standard format.
    pub(crate) fn sanitise(&self, image: &mut [u64]) {
        let mut bytes = Bytes(image);
        let mxcsr = bytes.u32(24) & self.mxcsr_mask;
        bytes.put_u32(24, mxcsr);
        bytes.put_u32(28, self.mxcsr_mask);
        bytes.put_u32(SW_BYTES, FP_XSTATE_MAGIC1);
        bytes.put_u32(SW_BYTES + 4, self.len as u32 + 4);
        bytes.put_u64(SW_BYTES + 8, self.features);
        bytes.put_u32(SW_BYTES + 16, self.len as u32);
        let present = bytes.u64(LEGACY_LEN) & self.features;
        bytes.put_u64(LEGACY_LEN, present);
        for offset in (8..HEADER_LEN).step_by(8) {
            bytes.put_u64(LEGACY_LEN + offset, 0);
        }
        bytes.put_u32(self.len, FP_XSTATE_MAGIC2);
    }
}

/// Little-endian access to an image kept as words (for its alignment).
struct Bytes<'a>(&'a mut [u64]);

impl Bytes<'_> {
    fn u64(&self, offset: usize) -> u64 {
        self.0[offset / 8]
    }
    fn put_u64(&mut self, offset: usize, value: u64) {
        self.0[offset / 8] = value;
    }
    fn u32(&self, offset: usize) -> u32 {
        (self.0[offset / 8] >> (offset % 8 * 8)) as u32
    }
    fn put_u32(&mut self, offset: usize, value: u32) {
        let shift = offset % 8 * 8;
        let word = &mut self.0[offset / 8];
        *word = *word & !(0xffff_ffff << shift) | u64::from(value) << shift;
    }
}

#[target_feature(enable = "xsave")]
fn xgetbv0() -> u64 {
    // SAFETY: the caller made sure that XGETBV is enabled.
    unsafe { _xgetbv(0) }
}

fn fxsave_mxcsr_mask() -> u32 {
    #[repr(C, align(16))]
    struct Area([u32; 128]);
    let mut area = Area([0; 128]);
    // SAFETY: fxsave writes 512 bytes at a 16-byte-aligned address; every x86-64 CPU has it.
    unsafe { std::arch::x86_64::_fxsave(area.0.as_mut_ptr().cast()) };
    area.0[7]
}
