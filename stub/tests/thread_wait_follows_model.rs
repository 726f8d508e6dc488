//! The assembly of `thread_wait` makes exactly the accesses of the model `handoff::Stub`, in its order,
//! whatever values it sees.
//!
//! The instructions of the text are interpreted in lock-step with the model; each load forks into every value
//! that matters, to a depth that takes each edge of the state machine several times.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::mem::offset_of;

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use systrap_stub::code::sighandler::{resume, resume_all};
use systrap_stub::code::thread::thread_wait;
use systrap_stub::code::{entries_lie_in_text, offset_of_entry, text};
use systrap_stub::handoff::{Access, Stub, Word};
use systrap_stub::sysmsg::Sysmsg;
use systrap_stub::wire;

/// Where the interpreted slot lies.
const SLOT: u64 = 0x7f12_3400_0000;
const EVENT: u32 = wire::TRAPPED;

/// The few instructions that the hand-off is made of.
#[derive(Clone)]
struct Cpu {
    regs: [u64; 16],
    ip: u64,
    zero: bool,
    carry: bool,
}

/// What an instruction wants of the world.
#[derive(Debug, PartialEq, Eq)]
enum Effect {
    None,
    Memory(Access),
    /// A call that is not a futex call of the hand-off.
    Call {
        nr: u32,
        arg0: u64,
    },
    /// Any memory outside the words of the hand-off.
    Elsewhere(u64),
}

fn stub_text() -> &'static [u8] {
    // Names every entry, so that the linker keeps all of them.
    assert!(entries_lie_in_text());
    let (start, len) = text();
    // SAFETY: the linker's bounds of a section of initialised, never-written bytes.
    unsafe { std::slice::from_raw_parts(start, len) }
}

fn word_at(addr: u64) -> Option<Word> {
    [
        (offset_of!(Sysmsg, line.state), Word::State),
        (offset_of!(Sysmsg, supervisor_sleeps), Word::SupervisorSleeps),
        (offset_of!(Sysmsg, stub_sleeps), Word::StubSleeps),
        (offset_of!(Sysmsg, spin), Word::Spin),
    ]
    .into_iter()
    .find_map(|(offset, word)| (addr == SLOT + offset as u64).then_some(word))
}

impl Cpu {
    fn decode(&self) -> Instruction {
        let code = &stub_text()[self.ip as usize..];
        Decoder::with_ip(64, code, self.ip, DecoderOptions::NONE).decode()
    }

    fn register(&self, register: Register) -> u64 {
        let value = self.regs[register.full_register().number()];
        if register.size() == 4 { value & 0xffff_ffff } else { value }
    }

    fn set(&mut self, register: Register, value: u64) {
        assert!(register.size() >= 4, "no partial registers in the hand-off");
        let value = if register.size() == 4 { value & 0xffff_ffff } else { value };
        self.regs[register.full_register().number()] = value;
    }

    fn address(&self, i: &Instruction) -> u64 {
        assert_eq!(i.memory_index(), Register::None);
        self.register(i.memory_base()).wrapping_add(i.memory_displacement64())
    }

    fn operand(&self, i: &Instruction, n: u32) -> u64 {
        match i.op_kind(n) {
            OpKind::Register => self.register(i.op_register(n)),
            _ => i.immediate(n),
        }
    }

    fn compare(&mut self, a: u64, b: u64) {
        self.zero = a as u32 == b as u32;
        self.carry = (a as u32) < b as u32;
    }

    /// The access that the instruction at `ip` is about to make.
    fn effect(&self) -> Effect {
        let i = self.decode();
        if i.mnemonic() == Mnemonic::Syscall {
            let state = SLOT + offset_of!(Sysmsg, line.state) as u64;
            let [nr, rdi, rsi, rdx, r10] =
                [Register::RAX, Register::RDI, Register::RSI, Register::RDX, Register::R10]
                    .map(|r| self.register(r));
            let timeout = SLOT + offset_of!(Sysmsg, sleep_timeout) as u64;
            return match (nr, rsi) {
                (202, 0) if rdi == state && r10 == timeout => {
                    Effect::Memory(Access::FutexWait(Word::State, rdx as u32))
                }
                (202, 1) if rdi == state && rdx == i32::MAX as u64 => {
                    Effect::Memory(Access::FutexWake(Word::State))
                }
                _ => Effect::Call { nr: nr as u32, arg0: rdi },
            };
        }
        let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
        if !memory || i.mnemonic() == Mnemonic::Lea {
            return Effect::None;
        }
        let addr = self.address(&i);
        if i.mnemonic() == Mnemonic::Or && i.has_lock_prefix() && self.operand(&i, 1) == 0 {
            return Effect::Memory(Access::Fence);
        }
        let Some(word) = word_at(addr) else { return Effect::Elsewhere(addr) };
        Effect::Memory(match i.mnemonic() {
            Mnemonic::Xchg => Access::Swap(word, self.operand(&i, 1) as u32),
            Mnemonic::Cmpxchg if i.has_lock_prefix() => {
                let new = self.operand(&i, 1) as u32;
                Access::CompareExchange(word, self.register(Register::EAX) as u32, new)
            }
            Mnemonic::Mov if i.op0_kind() == OpKind::Memory => {
                Access::Store(word, self.operand(&i, 1) as u32)
            }
            Mnemonic::Mov | Mnemonic::Cmp => Access::Load(word),
            other => panic!("{other:?} on a word of the hand-off"),
        })
    }

    /// Executes the instruction, whose access (if any) saw `seen`.
    fn step(&mut self, seen: u32) {
        let i = self.decode();
        self.ip = i.next_ip();
        let branch = i.near_branch_target();
        match i.mnemonic() {
            Mnemonic::Xchg => self.set(i.op1_register(), seen.into()),
            Mnemonic::Or if i.has_lock_prefix() => {}
            Mnemonic::Cmpxchg => {
                let expected = self.register(Register::EAX);
                self.compare(expected, seen.into());
                if !self.zero {
                    self.set(Register::EAX, seen.into());
                }
            }
            Mnemonic::Mov if i.op0_kind() == OpKind::Memory => {}
            Mnemonic::Mov if i.op1_kind() == OpKind::Memory => self.set(i.op0_register(), seen.into()),
            Mnemonic::Mov => self.set(i.op0_register(), self.operand(&i, 1)),
            Mnemonic::Lea => self.set(i.op0_register(), self.address(&i)),
            Mnemonic::Cmp if i.op0_kind() == OpKind::Memory => {
                self.compare(seen.into(), self.operand(&i, 1));
            }
            Mnemonic::Cmp => self.compare(self.operand(&i, 0), self.operand(&i, 1)),
            Mnemonic::Test => self.compare(self.operand(&i, 0) & self.operand(&i, 1), 0),
            Mnemonic::Sub => {
                let (a, b) = (self.operand(&i, 0), self.operand(&i, 1));
                self.compare(a, b);
                self.set(i.op0_register(), a.wrapping_sub(b));
            }
            Mnemonic::Xor if i.op0_register() == i.op1_register() => self.set(i.op0_register(), 0),
            Mnemonic::Jmp if i.code() == Code::Jmp_rel8_64 || i.code() == Code::Jmp_rel32_64 => {
                self.ip = branch;
            }
            Mnemonic::Je if self.zero => self.ip = branch,
            Mnemonic::Jne if !self.zero => self.ip = branch,
            Mnemonic::Jae if !self.carry => self.ip = branch,
            Mnemonic::Je | Mnemonic::Jne | Mnemonic::Jae | Mnemonic::Pause => {}
            Mnemonic::Syscall => self.set(Register::RAX, 0),
            other => panic!("the interpreter does not know {other:?} at {:#x}", i.ip()),
        }
    }
}

/// Every edge of the model that a run took, with the value seen.
type Edges = BTreeSet<String>;

fn run(mut cpu: Cpu, model: Stub, depth: u32, edges: &mut Edges) {
    loop {
        let Some(expected) = model.access() else {
            let Stub::Done { reply, .. } = model else { unreachable!("only Done makes no access") };
            return check_reply(cpu, reply);
        };
        let access = match cpu.effect() {
            Effect::None => {
                cpu.step(0);
                continue;
            }
            Effect::Memory(access) => access,
            other => panic!("{other:?} at {:#x}, but the model is in {model:?}", cpu.ip),
        };
        assert_eq!(access, expected, "at {:#x} the model is in {model:?}", cpu.ip);
        if depth == 0 {
            return;
        }
        for seen in values(access) {
            edges.insert(format!("{model:?} {seen:#x}"));
            let mut next = cpu.clone();
            next.step(seen);
            run(next, model.next(seen), depth - 1, edges);
        }
        return;
    }
}

/// The values that an access can usefully see.
fn values(access: Access) -> Vec<u32> {
    match access {
        Access::Load(Word::State) => vec![
            EVENT,
            wire::RESUME,
            wire::RESUME_FULL,
            wire::EXECUTE,
            wire::EXECUTE_RESUME,
            wire::EXECUTE_RESUME_IF_DONE,
            wire::COPY_FROM_GUEST,
            wire::COPY_TO_GUEST,
            wire::STORE_WORD,
            wire::COPY_RESUME,
            wire::SLEEP,
            0x1234_5678,
        ],
        Access::Load(Word::SupervisorSleeps) => vec![0, 1, u32::MAX],
        Access::Load(Word::Spin) => vec![0, 1, 2, u32::MAX],
        Access::CompareExchange(..) => vec![wire::SLEEP, wire::RESUME, wire::EXECUTE],
        _ => vec![0],
    }
}

/// After the hand-off: the code goes where the reply says.
fn check_reply(mut cpu: Cpu, reply: u32) {
    let resume = offset_of_entry(resume) as u64;
    let resume_all = offset_of_entry(resume_all) as u64;
    let nr = SLOT + offset_of!(Sysmsg, line.nr) as u64;
    let arg0 = SLOT + offset_of!(Sysmsg, line.args) as u64;
    for _ in 0..40 {
        match (reply, cpu.effect()) {
            (wire::RESUME, _) if cpu.ip == resume => return,
            (wire::RESUME_FULL, _) if cpu.ip == resume_all => return,
            (
                wire::EXECUTE | wire::EXECUTE_RESUME | wire::EXECUTE_RESUME_IF_DONE,
                Effect::Elsewhere(addr),
            ) if addr == nr => return,
            (wire::COPY_FROM_GUEST | wire::COPY_TO_GUEST | wire::STORE_WORD, Effect::Elsewhere(addr))
                if addr == arg0 =>
            {
                return;
            }
            (wire::COPY_RESUME, Effect::Elsewhere(addr)) if addr == arg0 + 8 => return,
            (_, Effect::Call { nr: 231, .. }) if wire_value_is_unknown(reply) => return,
            (_, Effect::None) => cpu.step(0),
            (_, other) => panic!("reply {reply:#x} leads to {other:?} at {:#x}", cpu.ip),
        }
    }
    panic!("reply {reply:#x} leads nowhere");
}

fn wire_value_is_unknown(reply: u32) -> bool {
    ![
        wire::RESUME,
        wire::RESUME_FULL,
        wire::EXECUTE,
        wire::EXECUTE_RESUME,
        wire::EXECUTE_RESUME_IF_DONE,
        wire::COPY_FROM_GUEST,
        wire::COPY_TO_GUEST,
        wire::COPY_RESUME,
    ]
    .contains(&reply)
}

fn entered_with(event: u32) -> Cpu {
    let mut regs = [0xdead_beef_dead_beef; 16];
    regs[Register::R15.number()] = SLOT;
    regs[Register::R14.number()] = event.into();
    Cpu { regs, ip: offset_of_entry(thread_wait) as u64, zero: false, carry: false }
}

#[test]
fn every_access_is_the_models() {
    let mut edges = Edges::new();
    run(entered_with(EVENT), Stub::Publish { event: EVENT }, 15, &mut edges);
    println!("{} edges of the model taken in lock-step", edges.len());
    let states =
        ["Publish", "Barrier", "LookAtPeer", "Wake", "ReadSpin", "Spin", "Announce", "LookAgain", "Sleep"];
    for state in states.into_iter().chain(["AfterSleep", "Retract", "PutBack"]) {
        assert!(edges.iter().any(|edge| edge.starts_with(state)), "{state} was never reached");
    }
}

#[test]
fn the_lock_step_notices_another_model() {
    let wrong = Stub::LookAtPeer { event: EVENT };
    let result = std::panic::catch_unwind(|| run(entered_with(EVENT), wrong, 3, &mut Edges::new()));
    assert!(result.is_err(), "a model that does not publish first passed for the assembly's");
}
