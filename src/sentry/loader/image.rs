//! Mapping an opened program into a fresh address space.

use super::elf::{ElfFile, Segment};
use super::stack::{Auxiliary, InitialStack};
use super::{LoadError, Program};
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemory;
use crate::sentry::memory::{Maker, MapRequest, Mm, page_up};
use crate::{Context, GuestAddr, PAGE_SIZE, Vdso};
use std::sync::Arc;

/// A program in memory: where it starts and what `/proc` says of it.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// The first instruction: the interpreter's, if there is one.
    pub(crate) entry: GuestAddr,
    /// The initial stack pointer.
    pub(crate) stack_pointer: GuestAddr,
    /// The memory that holds the arguments, for `/proc/self/cmdline`.
    pub(crate) arguments: (GuestAddr, u64),
    /// The memory that holds the environment, for `/proc/self/environ`.
    pub(crate) environment: (GuestAddr, u64),
    /// The auxiliary vector, for `/proc/self/auxv`.
    pub(crate) auxv: Vec<u8>,
}

/// Where an ELF file was mapped.
struct Mapped {
    bias: u64,
    end: u64,
}

impl Program {
    /// Maps the program, its interpreter and its stack.
    pub(crate) fn load(
        &self,
        mm: &Mm,
        context: &mut Context,
        vdso: Option<Vdso>,
    ) -> Result<Image, LoadError> {
        let layout = mm.layout();
        let main = map_elf(mm, context, &self.main, Some(layout.pie_base))?;
        let interpreter = match &self.interpreter {
            Some(file) => Some((file, map_elf(mm, context, file, None)?)),
            None => None,
        };
        mm.set_brk_start(main.end + layout.brk_gap);

        let fail = |errno| LoadError::Map { path: self.main.path.clone(), errno };
        let exec = if self.main.executable_stack { libc::PROT_EXEC } else { 0 };
        let bottom = layout.stack_top - layout.stack_len;
        mm.map_named(bottom, layout.stack_len, libc::PROT_READ | libc::PROT_WRITE | exec, "[stack]")
            .map_err(fail)?;

        let entry = match &interpreter {
            Some((file, mapped)) => mapped.bias.wrapping_add(file.entry),
            None => main.bias.wrapping_add(self.main.entry),
        };
        let auxiliary = Auxiliary {
            vdso: vdso.map_or(0, |vdso| vdso.base.raw()),
            phdr: self.main.phdr_vaddr.map_or(0, |phdr| main.bias.wrapping_add(phdr)),
            phnum: self.main.phnum,
            base: interpreter.as_ref().map_or(0, |(_, mapped)| mapped.bias),
            owner: self.owner,
            entry: main.bias.wrapping_add(self.main.entry),
        };
        let stack = InitialStack::build(layout.stack_top, &self.argv, &self.envp, &self.execfn, &auxiliary);
        let pointer = GuestAddr::new(stack.pointer);
        mm.space().write(pointer, &stack.bytes).map_err(|_| fail(Errno::EFAULT))?;
        Ok(Image {
            entry: GuestAddr::new(entry),
            stack_pointer: pointer,
            arguments: stack.arguments,
            environment: stack.environment,
            auxv: stack.auxv,
        })
    }
}

/// Maps all segments; a relocatable file goes to `wish`, or wherever there is room.
fn map_elf(mm: &Mm, context: &mut Context, file: &ElfFile, wish: Option<u64>) -> Result<Mapped, LoadError> {
    let fail = |errno| LoadError::Map { path: file.path.clone(), errno };
    let (start, end) = file.span();
    let bias = if file.relocatable {
        let base = match wish {
            Some(base) => base.next_multiple_of(file.align),
            None => {
                let room = (end - start).checked_add(file.align).ok_or_else(|| fail(Errno::ENOMEM))?;
                let found =
                    page_up(room).ok_or(Errno::ENOMEM).and_then(|room| mm.find_room(room)).map_err(fail)?;
                (found + room - (end - start)) / file.align * file.align
            }
        };
        base.wrapping_sub(start)
    } else {
        0
    };
    for segment in &file.segments {
        map_segment(mm, context, file, segment, bias).map_err(fail)?;
    }
    Ok(Mapped { bias, end: bias.wrapping_add(end) })
}

/// Maps one segment: its file part, the zeroed rest of that part's last page, and whole zero pages.
fn map_segment(
    mm: &Mm,
    context: &mut Context,
    file: &ElfFile,
    segment: &Segment,
    bias: u64,
) -> Result<(), Errno> {
    let vaddr = bias.wrapping_add(segment.vaddr);
    let start = vaddr / PAGE_SIZE * PAGE_SIZE;
    let in_page = vaddr - start;
    let memory_end = (vaddr + segment.memory_len).next_multiple_of(PAGE_SIZE);
    let mut zero_from = start;
    if segment.file_len != 0 {
        let file_end = vaddr + segment.file_len;
        zero_from = file_end.next_multiple_of(PAGE_SIZE);
        mm.map(
            &mut Maker::at_once(context),
            &MapRequest {
                addr: GuestAddr::new(start),
                len: zero_from - start,
                prot: segment.prot as u64,
                flags: libc::MAP_PRIVATE | libc::MAP_FIXED,
                file: Some(Arc::clone(&file.file)),
                offset: segment.offset - in_page,
            },
        )?;
        if segment.memory_len > segment.file_len && segment.prot & libc::PROT_WRITE != 0 {
            let zeroes = vec![0; (zero_from - file_end) as usize];
            mm.space().write(GuestAddr::new(file_end), &zeroes)?;
        }
    }
    if memory_end > zero_from {
        mm.map(
            &mut Maker::at_once(context),
            &anonymous(zero_from, memory_end - zero_from, segment.prot, libc::MAP_FIXED),
        )?;
    }
    Ok(())
}

fn anonymous(addr: u64, len: u64, prot: i32, flags: i32) -> MapRequest {
    MapRequest {
        addr: GuestAddr::new(addr),
        len,
        prot: prot as u64,
        flags: flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        file: None,
        offset: 0,
    }
}

impl Image {
    /// The arguments as they are in memory now; programs rewrite them to change their title.
    pub(crate) fn command_line(&self, memory: &dyn GuestMemory) -> Vec<u8> {
        read_area(memory, self.arguments)
    }

    /// The initial environment's memory as it is now.
    pub(crate) fn environ(&self, memory: &dyn GuestMemory) -> Vec<u8> {
        read_area(memory, self.environment)
    }
}

fn read_area(memory: &dyn GuestMemory, (start, len): (GuestAddr, u64)) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    if let Err(stopped) = memory.read(start, &mut bytes) {
        bytes.truncate(stopped.copied);
    }
    bytes
}
