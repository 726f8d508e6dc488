//! The first line of a script: `#!interpreter [argument]` (fs/binfmt_script.c).

use std::ffi::CString;

/// How much of a file decides what it is (`BINPRM_BUF_SIZE`).
pub(super) const HEAD_LEN: usize = 256;

/// What a `#!` line says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ScriptLine {
    pub(super) interpreter: CString,
    /// Everything behind the interpreter is one argument.
    pub(super) argument: Option<CString>,
}

/// Parses the head of a file; `None` if it is not a script.
pub(super) fn parse(head: &[u8]) -> Option<Result<ScriptLine, &'static str>> {
    let line = head.strip_prefix(b"#!")?;
    Some(parse_line(line, head.len() == HEAD_LEN))
}

fn parse_line(line: &[u8], may_be_cut: bool) -> Result<ScriptLine, &'static str> {
    let is_blank = |byte: u8| byte == b' ' || byte == b'\t';
    let end = line.iter().position(|byte| *byte == b'\n');
    let text = &line[..end.unwrap_or(line.len())];
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = trim(text, is_blank);
    if text.is_empty() {
        return Err("the #! line names no interpreter");
    }
    let split = text.iter().position(|byte| is_blank(*byte));
    let (name, rest) = match split {
        Some(at) => (&text[..at], trim(&text[at..], is_blank)),
        // Without an end of the name in the part that was read, it may go on.
        None if end.is_none() && may_be_cut => {
            return Err("the interpreter's name in the #! line is too long");
        }
        None => (text, &[][..]),
    };
    let string = |bytes: &[u8]| CString::new(bytes).map_err(|_| "zero byte in the #! line");
    Ok(ScriptLine {
        interpreter: string(name)?,
        argument: if rest.is_empty() { None } else { Some(string(rest)?) },
    })
}

fn trim(text: &[u8], is_blank: impl Fn(u8) -> bool) -> &[u8] {
    let start = text.iter().position(|byte| !is_blank(*byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !is_blank(*byte)).map_or(start, |last| last + 1);
    &text[start..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, Option<String>) {
        let line = parse(text.as_bytes()).unwrap().unwrap();
        let show = |text: CString| text.into_string().unwrap();
        (show(line.interpreter), line.argument.map(show))
    }

    #[test]
    fn one_optional_argument() {
        assert_eq!(parsed("#!/bin/sh\necho"), ("/bin/sh".into(), None));
        assert_eq!(parsed("#! \t/bin/sh  \n"), ("/bin/sh".into(), None));
        assert_eq!(parsed("#!/usr/bin/env -S a b \n"), ("/usr/bin/env".into(), Some("-S a b".into())));
        assert_eq!(parsed("#!/bin/sh"), ("/bin/sh".into(), None));
        assert_eq!(parsed("#!/bin/sh\r\n"), ("/bin/sh\r".into(), None));
    }

    #[test]
    fn not_a_script_or_a_bad_one() {
        assert!(parse(b"\x7fELF").is_none());
        assert!(parse(b"#").is_none());
        assert!(parse(b"#!\n/bin/sh").unwrap().is_err());
        assert!(parse(b"#!   ").unwrap().is_err());
        let mut long = vec![b'x'; HEAD_LEN];
        long[..2].copy_from_slice(b"#!");
        assert!(parse(&long).unwrap().is_err());
        long[100] = b' ';
        assert!(parse(&long).unwrap().is_ok());
    }
}
