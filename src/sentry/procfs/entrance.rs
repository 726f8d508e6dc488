//! Which paths lead into `/proc`, by their text.

use std::borrow::Cow;

/// Whether an absolute path may lead into `/proc` by its text.
pub(super) fn may_be_proc(path: &[u8]) -> bool {
    // The usual prefixes, or one that begins by going nowhere (`//proc`, `/./proc`, `/../proc`).
    matches!(path.get(1), Some(b'p' | b'd' | b'/' | b'.'))
        && (path.starts_with(b"/proc") || !path.starts_with(b"/p"))
}

/// Whether a relative path may lead into `/proc` by its text: it goes up, or says `proc`.
pub(super) fn may_climb(path: &[u8]) -> bool {
    let mut path = path;
    while let Some(rest) = path.strip_prefix(b"./") {
        path = rest;
    }
    path.starts_with(b"..") || path.starts_with(b"proc") || path.starts_with(b"/")
}

/// Where an absolute path leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entered<'a> {
    /// Into `/proc`: the rest of the path.
    Proc(Cow<'a, [u8]>),
    /// Elsewhere.
    Elsewhere,
}

/// Whether an absolute path leads into `/proc`, directly or by the links of `/dev`.
pub(super) fn enter(path: &[u8], follow: bool) -> Entered<'_> {
    let (first, rest) = next_name(path);
    match first {
        b"proc" => Entered::Proc(Cow::Borrowed(rest)),
        b"dev" => {
            let (name, rest) = next_name(rest);
            let ends = rest.is_empty();
            let target: &[u8] = match name {
                b"fd" => b"/self/fd",
                b"stdin" => b"/self/fd/0",
                b"stdout" => b"/self/fd/1",
                b"stderr" => b"/self/fd/2",
                b".." => return enter(rest, follow),
                _ => return Entered::Elsewhere,
            };
            // Asked about as itself, the link is the host's.
            if ends && !follow {
                return Entered::Elsewhere;
            }
            Entered::Proc(Cow::Owned([target, rest].concat()))
        }
        _ => Entered::Elsewhere,
    }
}

/// The first name of a path that is not `.`, nor a `..` at the root, and what follows it.
fn next_name(path: &[u8]) -> (&[u8], &[u8]) {
    let mut rest = path;
    loop {
        let start = rest.iter().position(|byte| *byte != b'/').unwrap_or(rest.len());
        rest = &rest[start..];
        let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        let (name, remainder) = rest.split_at(end);
        if name != b"." {
            return (name, remainder);
        }
        rest = remainder;
    }
}

/// The absolute path of a relative one, as far as it only goes up (or nowhere) from a directory whose path has no
/// links in it; `None` if that cannot be said.
pub(super) fn climb(directory: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    if !directory.starts_with(b"/") {
        return None;
    }
    let mut at = directory;
    let mut rest = path;
    loop {
        let (name, remainder) = next_name(rest);
        if name != b".." {
            break;
        }
        let end = at.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        at = &at[..end];
        rest = remainder;
    }
    Some([at, b"/", rest].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proc(rest: &str) -> Entered<'static> {
        Entered::Proc(Cow::Owned(rest.as_bytes().to_vec()))
    }

    #[test]
    fn the_ways_into_proc() {
        assert_eq!(enter(b"/proc", true), proc(""));
        assert_eq!(enter(b"/proc/self/exe", true), proc("/self/exe"));
        assert_eq!(enter(b"//proc//self", true), proc("//self"));
        assert_eq!(enter(b"/./proc/./self", true), proc("/./self"));
        assert_eq!(enter(b"/process", true), Entered::Elsewhere);
        assert_eq!(enter(b"/pro", true), Entered::Elsewhere);
        assert_eq!(enter(b"/dev/null", true), Entered::Elsewhere);
        assert_eq!(enter(b"/dev/fd", true), proc("/self/fd"));
        assert_eq!(enter(b"/dev/fd", false), Entered::Elsewhere);
        assert_eq!(enter(b"/dev/fd/", false), proc("/self/fd/"));
        assert_eq!(enter(b"/dev//fd/3/x", false), proc("/self/fd/3/x"));
        assert_eq!(enter(b"/dev/stdout", true), proc("/self/fd/1"));
        assert_eq!(enter(b"/dev/../proc/self", true), proc("/self"));
        assert_eq!(enter(b"/dev", true), Entered::Elsewhere);
        assert_eq!(enter(b"/", true), Entered::Elsewhere);
        assert_eq!(enter(b"", true), Entered::Elsewhere);
    }

    #[test]
    fn other_paths_are_the_hosts_at_a_glance() {
        for path in ["/usr/lib/x", "/etc/mtab", "/", "/tmp/proc/self", "/pro", "/p", "/pram/x"] {
            assert!(!may_be_proc(path.as_bytes()), "{path}");
        }
        for path in ["/proc", "/proc/x", "//proc", "/./proc", "/../proc", "/dev/fd"] {
            assert!(may_be_proc(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn relative_paths_that_may_climb() {
        assert!(
            ["..", "../proc", "./../x", "proc/self", "././proc", ".//proc"]
                .iter()
                .all(|path| may_climb(path.as_bytes()))
        );
        assert!(["", ".", "./configure", "x/proc", ".git"].iter().all(|path| !may_climb(path.as_bytes())));
    }

    #[test]
    fn climbing_out_of_a_directory() {
        assert_eq!(climb(b"/", b"proc/self").as_deref(), Some(&b"//proc/self"[..]));
        assert_eq!(climb(b"/usr/lib", b"../../proc/x").as_deref(), Some(&b"//proc/x"[..]));
        assert_eq!(climb(b"/usr", b".././../../proc/x").as_deref(), Some(&b"//proc/x"[..]));
        assert_eq!(climb(b"/usr", b"proc").as_deref(), Some(&b"/usr/proc"[..]));
        assert_eq!(climb(b"(unreachable)/x", b"../proc"), None);
    }
}
