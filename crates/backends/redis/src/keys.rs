//! Where a lease lives in the key space.

use std::io::Write as _;

use mainstay_store::{Error, ErrorKind, Result};
use redis::{Cmd, RedisWrite as _};

/// How the name of a lease becomes the key that clients of other make know it by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyProfile {
    /// The prefix, then the name. `redlock:` is the layout of pottery and RedLock.net, `mutex:` that of
    /// redis-semaphore.
    Prefixed(String),
    /// The name itself: node-redlock, redlock-universal, redsync, bsm/redislock, rslock, redis-py.
    #[default]
    Verbatim,
}

impl KeyProfile {
    fn key(&self, name: &str) -> String {
        match self {
            Self::Prefixed(prefix) => format!("{prefix}{name}"),
            Self::Verbatim => name.to_owned(),
        }
    }

    /// The name behind a key of this profile.
    pub(crate) fn name<'k>(&self, key: &'k str) -> Option<&'k str> {
        match self {
            Self::Prefixed(prefix) => key.strip_prefix(prefix.as_str()),
            Self::Verbatim => Some(key),
        }
    }

    /// The keys of the lease `name`, which others know by `known`.
    ///
    /// # Errors
    /// `ApiMisuse` for a name whose side keys would live in another slot of a cluster.
    pub(crate) fn keys(&self, known: &str, name: &str) -> Result<Keys> {
        let lock = self.key(known);
        let stem = stem(&lock).ok_or_else(|| {
            let text = format!(
                "`{name}` is no name for a lease on Redis: a brace without a hash tag would put its fence \
                 into another slot than its lock"
            );
            Error::new(ErrorKind::ApiMisuse, text)
        })?;
        Ok(Keys { name: name.to_owned(), lock, stem })
    }
}

/// What stands before the name of a side key, so that a cluster keeps it in the slot of `key`; none if
/// nothing does. A hash tag is the text between the first `{` and the first `}` after it, if there is any.
fn stem(key: &str) -> Option<String> {
    let tagged = key.find('{').is_some_and(|open| {
        let rest = &key[open + 1..];
        rest.find('}').is_some_and(|close| close > 0)
    });
    match (tagged, key.contains('}')) {
        (true, _) => Some(format!("{key}:")),
        (false, false) => Some(format!("{{{key}}}:")),
        (false, true) => None,
    }
}

/// The lock whose side key of this name this is.
pub(crate) fn lock_of_side<'k>(key: &'k str, side: &str) -> Option<&'k str> {
    let lock = key.strip_suffix(side)?;
    let inner = lock.strip_prefix('{').and_then(|l| l.strip_suffix("}:"));
    match inner {
        Some(inner) if !inner.contains('}') => Some(inner),
        _ => lock.strip_suffix(':').filter(|l| stem(l).is_some_and(|s| s.len() == l.len() + 1)),
    }
}

/// The name of the key of what is known about a holder.
pub(crate) const INFO: &str = "info";

const BROKEN: &str = "broken";
const CHANNEL: &str = "ch";
const FENCE: &str = "fence";
const PLACES: &str = "places";

/// The op follows.
const TOMBSTONE: &str = "t:";

/// The name of the key of who shares it.
pub(crate) const SHARERS: &str = "sharers";

/// The name of the key of the line of those who wait.
pub(crate) const LINE: &str = "line";

/// The name of the key of a record.
pub(crate) const RECORD: &str = "rec";

/// The keys of one lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Keys {
    /// The lease's name.
    pub(crate) name: String,
    /// Who holds it: the key that clients of other make read and write.
    pub(crate) lock: String,
    stem: String,
}

impl Keys {
    fn side(&self, name: &str) -> String {
        format!("{}{name}", self.stem)
    }

    /// Adds the lock's own key.
    fn put_lock(&self, cmd: &mut Cmd) {
        cmd.write_arg(self.lock.as_bytes());
    }

    /// Adds a key beside the lock, from the parts of its name.
    fn put(&self, cmd: &mut Cmd, parts: [&str; 2]) {
        let mut arg = cmd.writer_for_next_arg();
        for part in [&self.stem, parts[0], parts[1]] {
            // A buffer takes everything.
            let _ = arg.write_all(part.as_bytes());
        }
    }

    /// Adds what refuses an acquisition that comes after its release.
    pub(crate) fn put_tombstone(&self, cmd: &mut Cmd, op: &str) {
        self.put(cmd, [TOMBSTONE, op]);
    }

    /// Adds what an acquisition needs: lock, fence, info, sharers, line, places.
    pub(crate) fn put_acquired(&self, cmd: &mut Cmd) {
        self.put_lock(cmd);
        for side in [FENCE, INFO, SHARERS, LINE, PLACES] {
            self.put(cmd, [side, ""]);
        }
    }

    /// Adds what a release needs: lock, info, channel.
    pub(crate) fn put_released(&self, cmd: &mut Cmd) {
        self.put_lock(cmd);
        self.put(cmd, [INFO, ""]);
        self.put(cmd, [CHANNEL, ""]);
    }

    /// The counter behind tokens; never expires.
    pub(crate) fn fence(&self) -> String {
        self.side(FENCE)
    }

    /// What is known about the holder.
    pub(crate) fn info(&self) -> String {
        self.side(INFO)
    }

    /// Whose lock was ended by force last, for as long as it would have lasted.
    pub(crate) fn broken(&self) -> String {
        self.side(BROKEN)
    }

    /// Told at every release.
    pub(crate) fn channel(&self) -> String {
        self.side(CHANNEL)
    }

    /// Who shares it.
    pub(crate) fn sharers(&self) -> String {
        self.side(SHARERS)
    }

    /// Who waits, in the order in which they came.
    pub(crate) fn line(&self) -> String {
        self.side(LINE)
    }

    /// What each of those who wait says.
    pub(crate) fn places(&self) -> String {
        self.side(PLACES)
    }

    /// When each share ends.
    pub(crate) fn ends(&self) -> String {
        self.side("ends")
    }

    /// The record of this name, if it is one.
    pub(crate) fn record(&self) -> String {
        self.side(RECORD)
    }

    /// The counter behind the versions of the record; never expires.
    pub(crate) fn versions(&self) -> String {
        self.side("recv")
    }

    /// Refuses an acquisition that comes after its release.
    pub(crate) fn tombstone(&self, op: &str) -> String {
        self.side(&format!("{TOMBSTONE}{op}"))
    }
}

#[cfg(test)]
mod tests {
    use super::{INFO, KeyProfile, lock_of_side, stem};

    #[test]
    fn f36_a_name_whose_fence_would_leave_its_slot_is_refused() {
        for (key, expected) in [
            ("a", Some("{a}:")),
            ("ns/a", Some("{ns/a}:")),
            ("{a}b", Some("{a}b:")),
            ("x{a}b{c}", Some("x{a}b{c}:")),
            ("a{", Some("{a{}:")),
            ("a}b", None),
            ("a{}b", None),
            ("}{", None),
        ] {
            assert_eq!(stem(key).as_deref(), expected, "{key}");
        }
        assert!(KeyProfile::Verbatim.keys("a}b", "a}b").is_err());
        assert!(
            KeyProfile::Prefixed("{".to_owned()).keys("a}b", "a}b").is_ok(),
            "the prefix makes a tag of it"
        );
    }

    #[test]
    fn keys_in_a_command_are_those_of_their_names() {
        let keys = KeyProfile::Prefixed("p:".to_owned()).keys("a", "a").unwrap();
        let (mut put, mut said) = (redis::cmd("X"), redis::cmd("X"));
        keys.put_tombstone(&mut put, "op");
        keys.put_acquired(&mut put);
        keys.put_released(&mut put);
        said.arg(keys.tombstone("op")).arg(&keys.lock).arg(keys.fence()).arg(keys.info()).arg(keys.sharers());
        said.arg(keys.line()).arg(keys.places());
        said.arg(&keys.lock).arg(keys.info()).arg(keys.channel());
        assert_eq!(put.get_packed_command(), said.get_packed_command());
    }

    #[test]
    fn an_info_key_leads_back_to_its_lock() {
        for name in ["a", "ns/a", "{a}b", "a{", "x:info"] {
            let keys = KeyProfile::Verbatim.keys(name, name).unwrap();
            assert_eq!(lock_of_side(&keys.info(), INFO), Some(name));
        }
        for other in ["info", ":info", "plain:info", "{}:info", "{a}b}:inf"] {
            assert_ne!(lock_of_side(other, INFO), Some("plain"), "{other}");
        }
    }
}
