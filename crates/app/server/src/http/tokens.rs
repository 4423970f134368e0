//! Tokens: made by the command line, stored only as SHA-256, read again when the file changes.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use mainstay_clock::WallTime;
use rustix::fs::{FlockOperation, flock};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::error::{Code, Error, Result};
use crate::http::stamp::{Stamp, stamp};
use crate::http::{Caller, Scope, is_namespace};

/// Most tokens of one data folder: each is compared on every request.
const MAX_TOKENS: usize = 256;
/// Most namespaces of one token: each is compared with the name that a request reaches.
const MAX_NAMESPACES: usize = 16;

/// A token as stored.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) name: String,
    pub(crate) scope: Scope,
    pub(crate) expires: Option<WallTime>,
    /// What its bearer may reach; none: everything.
    pub(crate) namespaces: Vec<String>,
    hash: [u8; 32],
}

impl Token {
    fn caller(&self) -> Caller {
        Caller { name: self.name.clone(), scope: self.scope, namespaces: self.namespaces.clone() }
    }
}

/// A token to make.
pub(crate) struct NewToken {
    pub(crate) name: String,
    pub(crate) scope: Scope,
    pub(crate) expires: Option<WallTime>,
    pub(crate) namespaces: Vec<String>,
}

/// The tokens of a data folder.
#[derive(Debug)]
pub(crate) struct Tokens {
    path: PathBuf,
    cached: Mutex<(Option<Stamp>, Arc<Vec<Token>>)>,
    /// There was a token once: authentication stays on when the last one is revoked.
    on: AtomicBool,
}

impl Tokens {
    /// The tokens of `data`. Nothing is read yet.
    pub(crate) fn of(data: &Path) -> Self {
        Self {
            path: data.join("tokens"),
            cached: Mutex::new((None, Arc::default())),
            on: AtomicBool::new(false),
        }
    }

    /// All tokens, read again when the file changed.
    ///
    /// # Errors
    /// A damaged file: no token is accepted rather than all.
    pub(crate) fn all(&self) -> Result<Arc<Vec<Token>>> {
        let stamp = match fs::metadata(&self.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(self.unreadable(e)),
            _ => stamp(&self.path),
        };
        let mut cached = self.cached.lock().expect("invariant: no panic under this lock");
        if cached.0 != stamp {
            let list = if stamp.is_some() { self.read()? } else { Vec::new() };
            self.on.fetch_or(!list.is_empty(), Ordering::Relaxed);
            *cached = (stamp, Arc::new(list));
        }
        Ok(Arc::clone(&cached.1))
    }

    /// Whether tokens are needed. Once on it stays on for the life of the process: revoking the last token
    /// must not open the node to everybody.
    ///
    /// # Errors
    /// As [`Tokens::all`].
    pub(crate) fn needed(&self) -> Result<bool> {
        Ok(!self.all()?.is_empty() || self.on.load(Ordering::Relaxed))
    }

    /// Says that somebody has to be known also while there is no token: the node knows certificates.
    pub(crate) fn demand(&self) {
        self.on.store(true, Ordering::Relaxed);
    }

    /// Who presents `secret`. Every stored token is compared, in constant time.
    ///
    /// # Errors
    /// As [`Tokens::all`].
    pub(crate) fn caller(&self, secret: &str, now: WallTime) -> Result<Option<Caller>> {
        self.holder(&Self::hash(secret), now)
    }

    /// What is stored of a token.
    pub(crate) fn hash(secret: &str) -> [u8; 32] {
        Sha256::digest(secret.as_bytes()).into()
    }

    /// Whose token has this hash, while it is good.
    ///
    /// # Errors
    /// As [`Tokens::all`].
    pub(crate) fn holder(&self, given: &[u8; 32], now: WallTime) -> Result<Option<Caller>> {
        let mut found = None;
        for token in self.all()?.iter() {
            let same = bool::from(token.hash.ct_eq(given));
            if same && token.expires.is_none_or(|t| t > now) {
                found = Some(token.caller());
            }
        }
        Ok(found)
    }

    /// Makes a token and returns its secret, the only time that it is seen.
    ///
    /// # Errors
    /// When the name is taken or not legal, or the file cannot be written.
    pub(crate) fn create(&self, new: &NewToken) -> Result<SecretString> {
        let legal = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
        if new.name.is_empty() || new.name.len() > 64 || !new.name.chars().all(legal) {
            let why = "a token name has 1 to 64 letters, digits or - _ . @";
            return Err(Error::new(Code::BadValue, why));
        }
        if let Some(bad) = new.namespaces.iter().find(|n| !is_namespace(n)) {
            let why = format!("`{bad}`: a namespace has 1 to 128 letters, digits or - _ . / :");
            return Err(Error::new(Code::BadValue, why));
        }
        if new.namespaces.len() > MAX_NAMESPACES {
            return Err(Error::new(
                Code::BadValue,
                format!("a token has at most {MAX_NAMESPACES} namespaces"),
            ));
        }
        let folder = self.path.parent().unwrap_or(Path::new("."));
        // The node's database may come into the same folder: for its owner only, as the node makes it.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|e| self.unreadable(e))?;
        let alone = self.alone()?;
        let mut list = self.now()?;
        if list.iter().any(|t| t.name == new.name) {
            return Err(Error::new(Code::BadValue, format!("a token named `{}` exists", new.name)));
        }
        if list.len() >= MAX_TOKENS {
            return Err(Error::new(Code::BadValue, format!("there are {MAX_TOKENS} tokens already")));
        }
        let mut random = [0_u8; 32];
        let taken = rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty());
        if taken != Ok(random.len()) {
            return Err(Error::new(Code::Internal, "the operating system gave no randomness"));
        }
        let secret = SecretString::from(format!("ms_{}", hex(&random)));
        let hash = Sha256::digest(secret.expose_secret().as_bytes()).into();
        let (name, namespaces) = (new.name.clone(), new.namespaces.clone());
        list.push(Token { name, scope: new.scope, expires: new.expires, namespaces, hash });
        self.write(&list, &alone)?;
        Ok(secret)
    }

    /// Removes a token; a running server refuses it from its next request on. False: no such token.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub(crate) fn revoke(&self, name: &str) -> Result<bool> {
        if self.now()?.iter().all(|t| t.name != name) {
            return Ok(false);
        }
        let alone = self.alone()?;
        let mut list = self.now()?;
        list.retain(|t| t.name != name);
        self.write(&list, &alone)?;
        Ok(true)
    }

    /// Waits for other commands that change the file: each writes a whole list, so of two at once one would bring back
    /// what the other one revoked, or lose what it made.
    fn alone(&self) -> Result<Alone> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let folder = fs::File::open(folder).map_err(|e| self.unreadable(e))?;
        loop {
            match flock(&folder, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Alone(folder)),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(self.unreadable(e.into())),
            }
        }
    }

    /// What the file holds, whatever was read before.
    fn now(&self) -> Result<Vec<Token>> {
        match self.path.try_exists() {
            Ok(true) => self.read(),
            Ok(false) => Ok(Vec::new()),
            Err(e) => Err(self.unreadable(e)),
        }
    }

    fn read(&self) -> Result<Vec<Token>> {
        let text = fs::read_to_string(&self.path).map_err(|e| self.unreadable(e))?;
        let mut list = Vec::new();
        for (number, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let token = parse(line).ok_or_else(|| {
                let place = format!("{}:{}", self.path.display(), number + 1);
                Error::new(Code::TokensFile, format!("{place}: not a token line"))
            })?;
            list.push(token);
        }
        Ok(list)
    }

    /// Replaces the file atomically, readable by its owner only. A revoked token does not come back with a power cut.
    fn write(&self, list: &[Token], folder: &Alone) -> Result<()> {
        let mut text = String::new();
        for t in list {
            let expires = t.expires.map_or_else(|| "never".to_owned(), |e| e.unix_millis().to_string());
            let _ = write!(text, "{} {} {} {expires}", t.name, t.scope.as_str(), hex(&t.hash));
            // A version that does not know namespaces reads no such line, and admits nobody.
            let _ = match t.namespaces.join(",") {
                none if none.is_empty() => writeln!(text),
                some => writeln!(text, " {some}"),
            };
        }
        let fresh = self.path.with_extension("new");
        let write = || -> std::io::Result<()> {
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&fresh, &self.path)?;
            folder.0.sync_all()
        };
        write().map_err(|e| self.unreadable(e))
    }

    fn unreadable(&self, e: std::io::Error) -> Error {
        Error::with(Code::TokensFile, format!("cannot use {}", self.path.display()), e)
    }
}

/// The folder of the file, locked until this is dropped.
struct Alone(fs::File);

impl Drop for Alone {
    fn drop(&mut self) {
        // Refused only for what is no descriptor.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

fn parse(line: &str) -> Option<Token> {
    let parts: Vec<&str> = line.split_whitespace().collect();
    let (name, scope, hash, expires, namespaces) = match parts.as_slice() {
        [name, scope, hash, expires] => (name, scope, hash, expires, Vec::new()),
        [name, scope, hash, expires, list] => {
            (name, scope, hash, expires, list.split(',').map(str::to_owned).collect())
        }
        _ => return None,
    };
    if !namespaces.iter().all(|n: &String| is_namespace(n)) {
        return None;
    }
    let expires = match *expires {
        "never" => None,
        millis => Some(WallTime::from_unix_millis(millis.parse().ok()?)),
    };
    let name = (*name).to_owned();
    Some(Token { name, scope: Scope::parse(scope)?, expires, namespaces, hash: unhex(hash)? })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0_u8; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn sec_02_a_token_is_stored_as_a_hash_and_can_be_revoked_and_expires() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::of(dir.path());
        let later = WallTime::from_unix_millis(1_000);
        let mut new = NewToken {
            name: "ci".to_owned(),
            scope: Scope::Operate,
            expires: Some(later),
            namespaces: vec!["team-a".to_owned(), "x/y".to_owned()],
        };
        let secret = tokens.create(&new).unwrap();
        let file = fs::read_to_string(dir.path().join("tokens")).unwrap();
        assert!(!file.contains(secret.expose_secret()), "{file}");
        assert_eq!(fs::metadata(dir.path().join("tokens")).unwrap().mode() & 0o777, 0o600);
        let at = |ms| tokens.caller(secret.expose_secret(), WallTime::from_unix_millis(ms)).unwrap();
        let namespaces = new.namespaces.clone();
        let known = Caller { name: "ci".to_owned(), scope: Scope::Operate, namespaces };
        assert_eq!(at(0), Some(known));
        assert!(at(1_000).is_none(), "it expired");
        assert!(tokens.create(&new).is_err(), "the name is taken");
        new.name = "other".to_owned();
        for bad in ["", "a b", "a,b", "*"] {
            new.namespaces = vec![bad.to_owned()];
            assert!(tokens.create(&new).is_err(), "{bad}");
        }
        assert!(tokens.revoke("ci").unwrap());
        assert!(at(0).is_none(), "it was revoked");
    }

    /// Each command wrote the list that it had read: what another one made meanwhile was gone, and what it had revoked
    /// was good again.
    #[test]
    fn sec_02_commands_at_the_same_moment_lose_no_token_and_bring_none_back() {
        const EACH: usize = 20;
        let dir = tempfile::tempdir().unwrap();
        let new = |name: String| NewToken { name, scope: Scope::Read, expires: None, namespaces: Vec::new() };
        let made = |who: usize, n: usize| format!("made-{who}-{n}");
        let data = dir.path().join("data");
        std::thread::scope(|scope| {
            for who in 0..4 {
                let data = &data;
                scope.spawn(move || {
                    for n in 0..EACH {
                        Tokens::of(data).create(&new(made(who, n))).unwrap();
                        assert!(n % 2 == 0 || Tokens::of(data).revoke(&made(who, n)).unwrap());
                    }
                });
            }
        });
        let there: BTreeSet<String> =
            Tokens::of(&data).all().unwrap().iter().map(|t| t.name.clone()).collect();
        let wanted = (0..4).flat_map(|who| (0..EACH).step_by(2).map(move |n| made(who, n)));
        assert_eq!(there, wanted.collect::<BTreeSet<String>>());
    }

    /// A node beyond loopback needs a token before its first start, so the folder was made here, for everybody to read: with
    /// the database that the node then put there.
    #[test]
    fn sec_02_a_folder_that_is_made_for_a_token_is_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("new/data");
        let new =
            NewToken { name: "ci".to_owned(), scope: Scope::Admin, expires: None, namespaces: Vec::new() };
        Tokens::of(&data).create(&new).unwrap();
        assert_eq!(fs::metadata(&data).unwrap().mode() & 0o777, 0o700);
        // One that is there stays as its owner wanted it.
        let own = dir.path().join("own");
        fs::create_dir(&own).unwrap();
        let before = fs::metadata(&own).unwrap().mode();
        Tokens::of(&own).create(&new).unwrap();
        assert_eq!(fs::metadata(&own).unwrap().mode(), before);
    }

    #[test]
    fn a_damaged_file_admits_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let hash = "0".repeat(64);
        for line in [
            "ci operate nonsense never".to_owned(),
            format!("ci operate {hash} never a,,b"),
            format!("ci operate {hash} never a b"),
        ] {
            fs::write(dir.path().join("tokens"), line).unwrap();
            let error = Tokens::of(dir.path()).all().unwrap_err();
            assert_eq!(error.code(), Code::TokensFile);
        }
    }
}
