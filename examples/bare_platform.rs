//! The platform without the sentry: a guest of a few instructions whose every call this program answers itself.
//!
//! ```sh
//! cargo run --release --no-default-features --example bare_platform
//! ```

use systrap::{Event, GuestAddr, Options, Protection, Systrap};

/// ```text
/// again:  mov eax, 4242       ; no kernel has this call
///         syscall
///         test rax, rax       ; the answer says whether to go on
///         jne again
///         ud2
/// ```
const CODE: [u8; 14] = [0xb8, 0x92, 0x10, 0, 0, 0x0f, 0x05, 0x48, 0x85, 0xc0, 0x75, 0xf4, 0x0f, 0x0b];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let platform = Systrap::new(Options::new())?;
    // The memory of a guest process lives in a stub process.
    let space = platform.new_address_space()?;
    let text = GuestAddr::new(0x10_0000);
    space.map_anonymous(text, systrap::PAGE_SIZE, Protection::READ_WRITE)?;
    space.write(text, &CODE)?;
    space.protect(text, systrap::PAGE_SIZE, Protection::READ_EXECUTE)?;

    // The registers of a guest thread.
    let mut context = platform.new_context()?;
    context.registers_mut().rip = text.raw();
    let mut left = 3;
    loop {
        match context.switch(&space)? {
            Event::Syscall(call) => {
                println!("call {} from {:#x}, {left} more", call.nr, call.ip);
                context.set_return(left);
                left -= 1;
            }
            Event::Signal(fault) => {
                // ud2 ends the guest, as it would end a process: with SIGILL.
                context.pull_full_state()?;
                println!("signal {} at {:#x}", fault.signo, context.registers().rip);
                return Ok(());
            }
            _ => {}
        }
    }
}
