//! The loader on good, truncated, random and hostile files; and the initial stack.

use super::stack::{Auxiliary, InitialStack};
use super::*;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;

struct Fixture {
    dir: tempfile::TempDir,
    handle: std::fs::File,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let handle = std::fs::File::open(dir.path()).unwrap();
        Self { dir, handle }
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.dir.path().join(name);
        let _ = std::fs::remove_file(&path);
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(bytes).unwrap();
        file.set_permissions(std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn open(&self, name: &str) -> Result<Program, LoadError> {
        let name = CString::new(name).unwrap();
        Program::open(self.handle.as_fd(), &name, vec![name.clone(), c"one".to_owned()], vec![])
    }

    fn error(&self, bytes: &[u8]) -> String {
        self.write("program", bytes);
        self.open("program").err().map_or_else(|| "no error".to_owned(), |error| error.to_string())
    }
}

/// A minimal program: one executable segment that holds the whole file.
fn tiny_elf() -> Vec<u8> {
    let mut bytes = vec![0_u8; 64 + 56 + 16];
    bytes[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let mut put =
        |at: usize, value: u64, len: usize| bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
    put(16, 2, 2); // ET_EXEC
    put(18, 62, 2); // EM_X86_64
    put(20, 1, 4);
    put(24, 0x40_0078, 8); // entry
    put(32, 64, 8); // phoff
    put(52, 64, 2);
    put(54, 56, 2); // phentsize
    put(56, 1, 2); // phnum
    put(64, 1, 4); // PT_LOAD
    put(68, 5, 4); // R+X
    put(80, 0x40_0000, 8); // vaddr
    put(96, 136, 8); // filesz
    put(104, 0x3000, 8); // memsz
    put(112, 4096, 8); // align
    bytes
}

fn changed(at: usize, new: &[u8]) -> Vec<u8> {
    let mut bytes = tiny_elf();
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

#[test]
fn a_minimal_program_is_accepted() {
    let fixture = Fixture::new();
    fixture.write("program", &tiny_elf());
    let program = fixture.open("program").unwrap();
    assert_eq!(program.main.span(), (0x40_0000, 0x40_3000));
    assert_eq!(program.main.phdr_vaddr, Some(0x40_0040));
    assert!(program.main.executable_stack && !program.main.relocatable);
    assert_eq!(program.command_name(), b"program");
    assert_eq!(program.executable().file_name().unwrap().as_bytes(), b"program");
}

#[test]
fn every_kind_of_damage_has_its_line() {
    let fixture = Fixture::new();
    let big = (1_u64 << 47).to_le_bytes();
    let lines = [
        fixture.error(b""),
        fixture.error(b"\x7fELF"),
        fixture.error(b"hello, world"),
        fixture.error(&changed(4, &[1])),
        fixture.error(&changed(5, &[2])),
        fixture.error(&changed(18, &[183])),
        fixture.error(&changed(16, &[1])),
        fixture.error(&changed(54, &[57])),
        fixture.error(&changed(56, &[0])),
        fixture.error(&changed(56, &[3])),
        fixture.error(&changed(32, &big)),
        fixture.error(&changed(64, &[4])),
        fixture.error(&changed(72, &[1])),
        fixture.error(&changed(96, &[200])),
        fixture.error(&changed(97, &[0xff])),
        fixture.error(&changed(104, &big)),
        fixture.error(&changed(104, &u64::MAX.to_le_bytes())),
    ];
    insta::assert_snapshot!(lines.join("\n"), @r"
    program: cannot execute: not an ELF file or a script
    program: cannot execute: truncated ELF header
    program: cannot execute: not an ELF file or a script
    program: cannot execute: 32-bit programs are not supported
    program: cannot execute: not a 64-bit little-endian ELF file
    program: cannot execute: not a program for x86-64
    program: cannot execute: not an executable ELF file
    program: cannot execute: bad program header table
    program: cannot execute: bad program header table
    program: cannot execute: truncated program header table
    program: cannot execute: truncated program header table
    program: cannot execute: nothing to load
    program: cannot execute: misaligned segment
    program: cannot execute: truncated: a segment reaches past the end of the file
    program: cannot execute: segment larger in the file than in memory
    program: cannot execute: segment outside the user address space
    program: cannot execute: segment outside the user address space
    ");
}

#[test]
fn truncated_and_random_files_never_panic() {
    let fixture = Fixture::new();
    let real = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    for len in (0..200).chain([1000, 4095, 4096, 4097, real.len() / 2, real.len() - 1]) {
        fixture.write("program", &real[..len.min(real.len())]);
        let _ = fixture.open("program");
    }
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..3000 {
        // Half of them are random throughout, half a valid file with a few random bytes.
        let mut bytes = tiny_elf();
        if round % 2 == 0 {
            bytes[4..].iter_mut().for_each(|byte| *byte = random() as u8);
        } else {
            for _ in 0..1 + random() % 8 {
                let at = random() as usize % bytes.len();
                bytes[at] = random() as u8;
            }
        }
        fixture.write("program", &bytes);
        if let Ok(program) = fixture.open("program") {
            let (start, end) = program.main.span();
            assert!(start < end && end <= (1 << 47) + crate::PAGE_SIZE);
        }
    }
}

#[test]
fn files_that_are_not_programs() {
    let fixture = Fixture::new();
    assert_eq!(fixture.open("missing").err().unwrap().errno(), Errno::ENOENT);
    assert_eq!(fixture.open("/").err().unwrap().to_string(), "/: Is a directory");
    assert_eq!(fixture.open("/dev/null").err().unwrap().errno(), Errno::EACCES);
    fixture.write("plain", &tiny_elf());
    let mode = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(fixture.dir.path().join("plain"), mode).unwrap();
    assert_eq!(fixture.open("plain").err().unwrap().to_string(), "plain: Permission denied");
}

#[test]
fn scripts_nest_and_pass_their_argument() {
    let fixture = Fixture::new();
    fixture.write("program", &tiny_elf());
    fixture.write("first", b"#!program -x y\n");
    fixture.write("second", b"#! first\n");
    let program = fixture.open("second").unwrap();
    let argv: Vec<&str> = program.argv.iter().map(|arg| arg.to_str().unwrap()).collect();
    assert_eq!(argv, ["program", "-x y", "first", "second", "one"]);
    assert_eq!(program.execfn.as_c_str(), c"second");
    fixture.write("loop", b"#!loop\n");
    assert_eq!(fixture.open("loop").err().unwrap().errno(), Errno::ELOOP);
    fixture.write("lost", b"#!/no/such/interpreter\n");
    let error = fixture.open("lost").err().unwrap();
    assert_eq!(
        error.to_string(),
        "lost: interpreter /no/such/interpreter not usable: No such file or directory"
    );
}

#[test]
fn the_initial_stack_is_laid_out_as_the_abi_says() {
    let top = 0x7000_0000_0000_u64;
    let strings = |list: &[&str]| list.iter().map(|text| CString::new(*text).unwrap()).collect::<Vec<_>>();
    let auxiliary = Auxiliary {
        vdso: 0x1000,
        phdr: 0x40_0040,
        phnum: 3,
        base: 0,
        entry: 0x40_1000,
        owner: super::Owner::default(),
    };
    for count in 0..4 {
        let argv = strings(&["prog", "a", "bc", "def"][..count]);
        let stack = InitialStack::build(top, &argv, &strings(&["A=1", "B=22"]), c"/bin/prog", &auxiliary);
        assert_eq!(stack.pointer % 16, 0);
        assert_eq!(stack.pointer + stack.bytes.len() as u64, top);
        let word = |index: usize| u64::from_le_bytes(stack.bytes[index * 8..][..8].try_into().unwrap());
        let text = |addr: u64| {
            let tail = &stack.bytes[(addr - stack.pointer) as usize..];
            CStr::from_bytes_until_nul(tail).unwrap().to_str().unwrap().to_owned()
        };
        let argc = count.max(1);
        assert_eq!(word(0), argc as u64);
        if count > 1 {
            assert_eq!((text(word(1)), text(word(2))), ("prog".to_owned(), "a".to_owned()));
        }
        assert_eq!(word(1 + argc), 0);
        assert_eq!(text(word(2 + argc)), "A=1");
        assert_eq!(word(4 + argc), 0);
        let auxv: Vec<(u64, u64)> = (0..)
            .map(|pair| (word(5 + argc + 2 * pair), word(6 + argc + 2 * pair)))
            .take_while(|(kind, _)| *kind != 0)
            .collect();
        let value = |kind: u64| auxv.iter().find(|(found, _)| *found == kind).unwrap().1;
        assert_eq!(value(libc::AT_PHDR), 0x40_0040);
        assert_eq!(value(libc::AT_SYSINFO_EHDR), 0x1000);
        assert_eq!(text(value(libc::AT_EXECFN)), "/bin/prog");
        assert_eq!(text(value(libc::AT_PLATFORM)), "x86_64");
        assert_eq!(value(libc::AT_HWCAP), host::auxiliary_value(libc::AT_HWCAP));
        assert_eq!(stack.auxv.len(), 16 * (auxv.len() + 1));
    }
}

#[test]
fn arguments_have_limits() {
    let fixture = Fixture::new();
    fixture.write("program", &tiny_elf());
    let open = |argument: Vec<u8>, count: usize| {
        let argv = vec![CString::new(argument).unwrap(); count];
        Program::open(fixture.handle.as_fd(), c"program", argv, vec![]).err()
    };
    assert_eq!(open(vec![b'x'; 131_071], 1), None);
    assert_eq!(open(vec![b'x'; 131_072], 1), Some(LoadError::ArgumentsTooLong));
    assert_eq!(open(vec![b'x'; 100_000], 30), Some(LoadError::ArgumentsTooLong));
}
