//! sendmsg, recvmsg, and the calls that take several messages.

use super::super::SysResult;
use super::super::args::{Fd, InMessages, MESSAGE_ENTRY, MessageFlags, MessageHeader};
use super::super::transfer::Segments;
use super::address::{resolve_destination, translate, write_address};
use super::control::{self, Outbound};
use super::transfer::{Along, Extras, receive, send};
use crate::GuestAddr;
use crate::sentry::abi::{IOV_MAX, Timespec};
use crate::sentry::errno::Errno;
use crate::sentry::file::File;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::hook::OutgoingMessage;
use crate::sentry::host::AddressBuffer;
use crate::sentry::task::Task;
use std::mem::offset_of;
use std::time::{Duration, Instant};

const ENTRY_LEN_AT: u64 = size_of::<MessageHeader>() as u64;

fn segments(header: &MessageHeader, task: &Task) -> Result<Segments, Errno> {
    Segments::read(task.memory(), GuestAddr::new(header.segments), header.segment_count as usize)
}

fn at(addr: GuestAddr, offset: usize) -> Result<GuestAddr, Errno> {
    addr.checked_add(offset as u64).ok_or(Errno::EFAULT)
}

fn send_message(task: &mut Task, file: &File, message: &OutgoingMessage, flags: i32) -> Result<i64, Errno> {
    let header = &message.header;
    let name = resolve_destination(task, file.as_socket()?, message.address)?;
    let segments = segments(header, task)?;
    let control = GuestAddr::new(header.control);
    let control = Outbound::read(task, file.as_socket()?, control, header.control_len)?;
    let name = name.as_ref().map(|name| name.as_bytes());
    let along = Along { name, control: &control.bytes, named: control.named };
    send(task, file, segments, along, flags)
}

pub(in super::super) fn sendmsg(
    task: &mut Task,
    fd: Fd,
    message: InMessages<false>,
    MessageFlags(flags): MessageFlags,
) -> SysResult {
    let file = task.file(fd.0)?;
    file.as_socket()?;
    let message = message.read(task.memory(), 0)?;
    send_message(task, &file, &message, flags)
}

/// Receives one message: the length, and the flags that the guest is told.
fn receive_message(task: &mut Task, file: &File, addr: GuestAddr, flags: i32) -> Result<(i64, i32), Errno> {
    let header = MessageHeader::read(task.memory(), addr)?;
    let segments = segments(&header, task)?;
    let socket = file.as_socket()?;
    let mut name = AddressBuffer::new();
    let wants_name = header.name != 0;
    let room = match header.control {
        0 => 0,
        _ => usize::try_from(header.control_len).unwrap_or(control::MOST).min(control::MOST),
    };
    let mut buffer = vec![0; room];
    let extras = Extras { name: wants_name.then_some(&mut name), control: &mut buffer, message: true };
    let mut received = receive(task, file, segments, extras, flags & !libc::MSG_CMSG_CLOEXEC)?;
    let cloexec = flags & libc::MSG_CMSG_CLOEXEC != 0;
    let inbound = control::inbound(task, file, socket, &mut received, &buffer, cloexec);
    let told = (received.flags & !libc::MSG_CMSG_CLOEXEC) | inbound.flags | (flags & libc::MSG_CMSG_CLOEXEC);
    if !inbound.bytes.is_empty() {
        task.memory().write(GuestAddr::new(header.control), &inbound.bytes)?;
    }
    if wants_name {
        translate(task, socket, &mut name);
        write_address(
            task,
            &name,
            GuestAddr::new(header.name),
            at(addr, offset_of!(MessageHeader, name_len))?,
        )?;
    }
    task.memory().write_object(at(addr, offset_of!(MessageHeader, flags))?, &told)?;
    let len = inbound.bytes.len() as u64;
    task.memory().write_object(at(addr, offset_of!(MessageHeader, control_len))?, &len)?;
    Ok((received.len as i64, told))
}

pub(in super::super) fn recvmsg(
    task: &mut Task,
    fd: Fd,
    message: GuestAddr,
    MessageFlags(flags): MessageFlags,
) -> SysResult {
    let file = task.file(fd.0)?;
    file.as_socket()?;
    receive_message(task, &file, message, flags).map(|(len, _)| len)
}

/// Where the message of that number is.
fn entry(messages: GuestAddr, index: u64) -> Result<GuestAddr, Errno> {
    messages.checked_add(index * MESSAGE_ENTRY).ok_or(Errno::EFAULT)
}

fn write_len(task: &Task, entry: GuestAddr, len: i64) -> Result<(), Errno> {
    let addr = entry.checked_add(ENTRY_LEN_AT).ok_or(Errno::EFAULT)?;
    task.memory().write_object(addr, &(len as u32))
}

/// The number of messages done, or why there is none.
fn outcome(done: u64, result: Result<(), Errno>) -> SysResult {
    match result {
        Err(errno) if done == 0 => Err(errno),
        _ => Ok(done as i64),
    }
}

pub(in super::super) fn sendmmsg(
    task: &mut Task,
    fd: Fd,
    messages: InMessages<true>,
    _: u32,
    MessageFlags(flags): MessageFlags,
) -> SysResult {
    let file = task.file(fd.0)?;
    file.as_socket()?;
    let mut one = |index| {
        let message = messages.read(task.memory(), index)?;
        let len = send_message(task, &file, &message, flags)?;
        write_len(task, messages.entry(index)?, len)
    };
    for index in 0..messages.count {
        if let Err(errno) = one(index) {
            return outcome(index.into(), Err(errno));
        }
    }
    outcome(messages.count.into(), Ok(()))
}

pub(in super::super) fn recvmmsg(
    task: &mut Task,
    fd: Fd,
    messages: GuestAddr,
    count: u32,
    MessageFlags(flags): MessageFlags,
    timeout: GuestAddr,
) -> SysResult {
    let file = task.file(fd.0)?;
    file.as_socket()?;
    let limit = match task.memory().read_optional::<Timespec>(timeout)? {
        Some(time) => Some(time.to_duration().ok_or(Errno::EINVAL)?),
        None => None,
    };
    let started = Instant::now();
    let left = |limit: Duration| limit.saturating_sub(started.elapsed());
    let count = u64::from(count).min(IOV_MAX as u64);
    let mut flags = flags;
    let mut done = 0;
    let mut result = Ok(());
    while done < count {
        let mut one = || -> Result<i32, Errno> {
            let entry = entry(messages, done)?;
            let (len, told) = receive_message(task, &file, entry, flags & !libc::MSG_WAITFORONE)?;
            write_len(task, entry, len)?;
            Ok(told)
        };
        match one() {
            Ok(told) => {
                done += 1;
                // As the kernel: the time is looked at after each message only, and what is urgent ends the call.
                if told & libc::MSG_OOB != 0 || limit.is_some_and(|limit| left(limit).is_zero()) {
                    break;
                }
            }
            Err(errno) => {
                result = Err(errno);
                break;
            }
        }
        if flags & libc::MSG_WAITFORONE != 0 {
            flags |= libc::MSG_DONTWAIT;
        }
    }
    if done > 0
        && let Some(limit) = limit
    {
        task.memory().write_object(timeout, &Timespec::from_duration(left(limit)))?;
    }
    outcome(done, result)
}
