//! Values of options, from their texts.

use clap::builder::{OsStringValueParser, TypedValueParser};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::time::Duration;

/// A number and what follows it.
fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(end)
}

/// A length of time: a number with `ms`, `s`, `m`, `h`, `d`, or of seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "not a duration: use a number with ms, s, m, h or d, as in 500ms or 2.5s".to_owned();
    let (number, unit) = split(text);
    let seconds = match unit {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let duration = Duration::try_from_secs_f64(number * seconds).map_err(|_| "too long".to_owned())?;
    if duration.is_zero() { Err("no time at all".to_owned()) } else { Ok(duration) }
}

/// A number of bytes, with `K`, `M`, `G` or `T` of 1024s (`KiB` and `KB` mean the same).
pub fn size(text: &str) -> Result<u64, String> {
    let wrong = || "not a size: use a number of bytes, or with K, M, G or T, as in 512M".to_owned();
    let (number, unit) = split(text);
    let unit = unit.to_ascii_lowercase();
    let unit = unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit);
    let shift = ["", "k", "m", "g", "t"].iter().position(|known| *known == unit).ok_or_else(wrong)? * 10;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let bytes = number.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())?;
    if bytes == 0 { Err("no memory at all".to_owned()) } else { Ok(bytes) }
}

/// A user and a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// `UID` or `UID:GID`.
pub fn user(text: &str) -> Result<User, String> {
    let id = |text: &str| match text.parse::<u32>() {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(format!("{text:?} is not a user or group number: use UID or UID:GID, see id(1)")),
    };
    match text.split_once(':') {
        Some((uid, gid)) => Ok(User { uid: id(uid)?, gid: id(gid)? }),
        None => id(text).map(|id| User { uid: id, gid: id }),
    }
}

/// An environment variable; without a value it is to be passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: OsString,
    /// Its value.
    pub value: Option<OsString>,
}

/// Reads `NAME=VALUE` or `NAME`, whose bytes may be any.
pub fn variable() -> impl TypedValueParser<Value = Variable> {
    OsStringValueParser::new().try_map(|text| {
        let bytes = text.as_bytes();
        let (name, value) = match bytes.iter().position(|byte| *byte == b'=') {
            Some(at) => (&bytes[..at], Some(OsString::from_vec(bytes[at + 1..].to_vec()))),
            None => (bytes, None),
        };
        if name.is_empty() {
            return Err("a variable needs a name: use NAME=VALUE or NAME".to_owned());
        }
        Ok(Variable { name: OsString::from_vec(name.to_vec()), value })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let ms = Duration::from_millis;
        for (text, expected) in
            [("10", ms(10_000)), ("500ms", ms(500)), ("2s", ms(2000)), ("5m", ms(300_000))]
        {
            assert_eq!(duration(text), Ok(expected), "{text}");
        }
        assert_eq!(duration("0.25"), Ok(ms(250)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for bad in ["", "s", "-1", "1 s", "1x", "0", "1e3", "1..5", "inf", "999999999999999999999"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        for (text, expected) in
            [("4096", 4096), ("1k", 1 << 10), ("512M", 512 << 20), ("2GiB", 2 << 30), ("1tb", 1 << 40)]
        {
            assert_eq!(size(text), Ok(expected), "{text}");
        }
        for bad in ["", "M", "1.5G", "-1", "1 M", "1P", "0", "99999999999T"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn users() {
        assert_eq!(user("7"), Ok(User { uid: 7, gid: 7 }));
        assert_eq!(user("7:8"), Ok(User { uid: 7, gid: 8 }));
        for bad in ["", ":", "1:", ":1", "root", "-1", "4294967295", "1:2:3"] {
            assert!(user(bad).is_err(), "{bad}");
        }
    }
}
