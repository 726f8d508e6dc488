//! Vector state as a test needs it: filled at random, and compared whatever form it was saved in.
#![allow(dead_code, reason = "each test crate uses its own part")]

use std::arch::x86_64::__cpuid_count;

/// Where an xsave image says which components it holds.
const XSTATE_BV: usize = 512;
/// x87 and SSE, which have fixed places, and what has a place of its own: AVX and the three parts of AVX-512. PKRU is
/// the platform's, and tiles need a permission.
const OWN_PLACES: [u32; 4] = [2, 5, 6, 7];
const MXCSR: usize = 24;

/// Offset and length of a component in an xsave image of the standard format.
fn place(component: u32) -> (usize, usize) {
    match component {
        0 => (32, 128),
        1 => (160, 256),
        other => {
            let leaf = __cpuid_count(0xd, other);
            (leaf.ebx as usize, leaf.eax as usize)
        }
    }
}

/// The components that the CPU has and that both images hold room for.
pub fn components(image_len: usize) -> Vec<u32> {
    let supported = __cpuid_count(0xd, 0).eax;
    let fits = |component: &u32| {
        let (at, len) = place(*component);
        supported & (1 << component) != 0 && len > 0 && at + len <= image_len
    };
    [0, 1].into_iter().chain(OWN_PLACES.into_iter().filter(fits)).collect()
}

/// Puts random values into the components and marks them as in use.
pub fn fill(image: &mut [u8], components: &[u32], mut random: impl FnMut() -> u8) {
    for component in components {
        let (at, len) = place(*component);
        image[at..at + len].fill_with(&mut random);
        image[XSTATE_BV + usize::from(*component >= 8)] |= 1 << (component % 8);
    }
    // An x87 register has ten bytes of its sixteen. All are in use, the stack is at its initial place.
    for register in image[32..160].chunks_mut(16) {
        register[10..].fill(0);
    }
    image[..32].fill(0);
    image[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    image[4] = 0xff;
    image[MXCSR..MXCSR + 4].copy_from_slice(&0x1f80_u32.to_le_bytes());
}

/// The controls and the components; what the image leaves out because it is as it was in the beginning is spelt out.
pub fn contents(image: &[u8], components: &[u32]) -> Vec<u8> {
    let mut all = Vec::new();
    let held = |component: u32| image[XSTATE_BV] & (1 << component) != 0;
    if held(0) {
        all.extend_from_slice(&image[..24]);
    } else {
        all.extend_from_slice(&0x37f_u16.to_le_bytes());
        all.resize(24, 0);
    }
    let mxcsr: [u8; 4] = image[MXCSR..MXCSR + 4].try_into().expect("four bytes");
    all.extend(if components.iter().skip(1).any(|c| held(*c)) { mxcsr } else { 0x1f80_u32.to_le_bytes() });
    for component in components {
        let (at, len) = place(*component);
        let end = all.len() + len;
        match held(*component) {
            true => all.extend_from_slice(&image[at..at + len]),
            false => all.resize(end, 0),
        }
    }
    all
}
