//! The names of Unix sockets: the host is told one name below a directory, the guest's programs the path that was bound.
//!
//! Whoever asks for a socket's address gets the text that was bound from the host. It is made to differ from that of other
//! sockets of the same name, by `./` in front, and the guest's path is looked up by it.

use crate::sentry::process::lock;
use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

/// The most names that are remembered. A socket that was bound before so many others shows the host's text.
const MOST: usize = 4096;
/// The longest text that `bind` takes.
const LONGEST: usize = 108;

/// What was bound.
#[derive(Debug, Default)]
pub(crate) struct SocketNames(Mutex<Names>);

#[derive(Debug, Default)]
struct Names {
    /// The guest's path for a text of the host's.
    paths: HashMap<Vec<u8>, Vec<u8>>,
    /// The texts, oldest first.
    order: VecDeque<Vec<u8>>,
}

impl SocketNames {
    /// The text to bind for a name in a directory that the guest knows by a path.
    pub(crate) fn bind(&self, name: &[u8], path: &[u8]) -> Vec<u8> {
        let mut names = lock(&self.0);
        let mut text = name.to_vec();
        while let Some(known) = names.paths.get(&text) {
            if known == path {
                return text;
            }
            text = [b"./", &text[..]].concat();
            if text.len() > LONGEST {
                return name.to_vec();
            }
        }
        if names.order.len() >= MOST
            && let Some(oldest) = names.order.pop_front()
        {
            names.paths.remove(&oldest);
        }
        names.order.push_back(text.clone());
        names.paths.insert(text.clone(), path.to_vec());
        text
    }

    /// The guest's path for a text that the host has for a socket.
    pub(crate) fn path(&self, text: &[u8]) -> Option<Vec<u8>> {
        lock(&self.0).paths.get(text).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_one_name_are_told_apart() {
        let names = SocketNames::default();
        assert_eq!(names.bind(b"s", b"/a/s"), b"s");
        assert_eq!(names.bind(b"s", b"/b/s"), b"./s");
        assert_eq!(names.bind(b"s", b"/b/s"), b"./s");
        assert_eq!(names.path(b"s").as_deref(), Some(&b"/a/s"[..]));
        assert_eq!(names.path(b"./s").as_deref(), Some(&b"/b/s"[..]));
        assert_eq!(names.path(b"t"), None);
        for number in 0..MOST {
            names.bind(format!("{number}").as_bytes(), b"x");
        }
        assert_eq!(names.path(b"s"), None);
        assert_eq!(lock(&names.0).paths.len(), MOST);
    }
}
