//! Which keys stand for what.
//!
//! The lock key `<name>/<lease>` is that of etcd's own locks and elections. Everything else is ours and lies under
//! `.mainstay/`, where no name may begin; a zero byte separates the name there, so that no name is part of another.

use mainstay_store::lease::Names;
use mainstay_store::{Error, ErrorKind, Result};

/// Where our own keys are.
const OURS: &str = ".mainstay/";

/// How names become keys.
#[derive(Clone, Debug)]
pub(crate) struct Scheme {
    root: String,
    names: Names,
}

impl Scheme {
    pub(crate) fn new(root: &str, names: Names) -> Self {
        Self { root: root.to_owned(), names }
    }

    /// Refuses names that would be read as something else.
    pub(crate) fn check(&self, names: &[String]) -> Result<()> {
        self.names.check(names)?;
        let refuse = |text: String| Err(Error::new(ErrorKind::ApiMisuse, text));
        for name in names.iter().map(|name| self.names.known(name)) {
            if name.contains('\0') {
                return refuse("a lease name has a byte of zero in it".to_owned());
            }
            if format!("{name}/").starts_with(OURS) {
                return refuse(format!("the lease name `{name}` begins where this store keeps its own keys"));
            }
        }
        Ok(())
    }

    /// Before all lock keys of the name.
    pub(crate) fn locks(&self, name: &str) -> Vec<u8> {
        format!("{}{}/", self.root, self.names.known(name)).into_bytes()
    }

    pub(crate) fn lock(&self, name: &str, lease: i64) -> Vec<u8> {
        format!("{}{}/{lease:x}", self.root, self.names.known(name)).into_bytes()
    }

    fn side(&self, kind: char, name: &str) -> String {
        format!("{}{OURS}{kind}/{}\0", self.root, self.names.known(name))
    }

    /// Before what is known about whoever waits for the name or holds it.
    pub(crate) fn places(&self, name: &str) -> Vec<u8> {
        self.side('i', name).into_bytes()
    }

    pub(crate) fn place(&self, name: &str, lease: i64) -> Vec<u8> {
        format!("{}{lease:x}", self.side('i', name)).into_bytes()
    }

    /// Before the marks of the holders of the name.
    pub(crate) fn marks(&self, name: &str) -> Vec<u8> {
        self.side('h', name).into_bytes()
    }

    /// Written by the transaction that proved the ownership; the revision of that is the token.
    pub(crate) fn mark(&self, name: &str, lease: i64) -> Vec<u8> {
        format!("{}{lease:x}", self.side('h', name)).into_bytes()
    }

    /// Before the marks of all names that start with `prefix`.
    pub(crate) fn all_marks(&self, prefix: &str) -> Vec<u8> {
        format!("{}{OURS}h/{}", self.root, self.names.known_prefix(prefix)).into_bytes()
    }

    /// The name in the key of a mark, if it starts with `prefix`.
    pub(crate) fn marked(&self, prefix: &str, key: &[u8]) -> Option<String> {
        let rest = key.strip_prefix(self.all_marks("").as_slice())?;
        let end = rest.iter().position(|b| *b == 0)?;
        self.names.listed(prefix, std::str::from_utf8(&rest[..end]).ok()?)
    }

    /// Where a record is; also before all whose keys start with `key`.
    pub(crate) fn record(&self, key: &str) -> Vec<u8> {
        format!("{}{OURS}r/{key}", self.root).into_bytes()
    }

    /// The key of a record; none when somebody else wrote one that is no text.
    pub(crate) fn recorded(&self, key: &[u8]) -> Option<String> {
        let rest = key.strip_prefix(self.record("").as_slice())?;
        String::from_utf8(rest.to_vec()).ok()
    }

    /// Where one acquisition is found by its id.
    pub(crate) fn operation(&self, op_id: &str) -> Vec<u8> {
        format!("{}{OURS}o/{op_id}", self.root).into_bytes()
    }
}

/// The last part of a key that lies directly under `prefix`; none for what lies deeper: the locks of a longer name.
pub(crate) fn last_part<'a>(prefix: &[u8], key: &'a [u8]) -> Option<&'a [u8]> {
    key.strip_prefix(prefix).filter(|rest| !rest.contains(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_locks_are_those_of_etcd() {
        let scheme = Scheme::new("", Names::Whole);
        assert_eq!(scheme.lock("a/b", 0x694d_75f2), b"a/b/694d75f2");
        assert_eq!(Scheme::new("app/", Names::Whole).lock("x", 15), b"app/x/f");
    }

    #[test]
    fn no_name_is_read_as_another() {
        let scheme = Scheme::new("p/", Names::Whole);
        assert_eq!(scheme.marked("a", &scheme.mark("a/b", 1)).as_deref(), Some("a/b"));
        assert!(!scheme.mark("a/b", 1).starts_with(&scheme.marks("a")));
        let locks = scheme.locks("a");
        assert_eq!(last_part(&locks, &scheme.lock("a", 255)), Some(&b"ff"[..]));
        assert_eq!(last_part(&locks, &scheme.lock("a/b", 1)), None);
        assert_eq!(scheme.recorded(&scheme.record("a\0b")).as_deref(), Some("a\0b"));
        assert_eq!(scheme.recorded(&scheme.mark("a", 1)), None);
        for bad in ["a\0b", ".mainstay", ".mainstay/o"] {
            assert!(scheme.check(&[bad.to_owned()]).is_err(), "{bad:?}");
        }
        assert!(scheme.check(&[".mainstayed".to_owned(), "a/.mainstay".to_owned()]).is_ok());
    }

    #[test]
    fn without_their_namespace_names_are_those_of_etcds_own_clients() {
        let bare = Scheme::new("", Names::Bare);
        assert_eq!(bare.lock("billing/job", 15), b"job/f");
        assert_eq!(bare.locks("billing/job"), b"job/");
        assert_eq!(bare.places("billing/job"), bare.places("search/job"), "one line for all of them");
        assert_eq!(bare.record("billing/job"), b".mainstay/r/billing/job", "records are nobody else's");
        assert_eq!(bare.marked("billing/", &bare.mark("billing/job", 1)).as_deref(), Some("billing/job"));
        assert!(bare.mark("billing/job", 1).starts_with(&bare.all_marks("billing/j")));
        assert!(bare.check(&["a/.mainstay".to_owned()]).is_err(), "that is where our own keys are");
        assert!(bare.check(&["a/job".to_owned(), "b/job".to_owned()]).is_err(), "they are one");
    }
}
