//! What addresses of stores have in common: logins, and files of TLS behind the servers.

use std::path::PathBuf;

use crate::ConfigError;

/// A part of an address with its `%XX` read. What is no such triple stays as it is.
///
/// ```
/// assert_eq!(mainstay_store::address::plain("p%40ss"), "p@ss");
/// assert_eq!(mainstay_store::address::plain("100%"), "100%");
/// ```
#[must_use]
pub fn plain(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let mut ahead = rest.clone();
        let mut half = || char::from(ahead.next()?).to_digit(16).and_then(|d| u8::try_from(d).ok());
        match (byte, half(), half()) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high << 4) | low);
                rest.nth(1);
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whom a client of TLS trusts and who it is: files in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "authorities and a certificate are all there is")]
pub struct TlsFiles {
    /// The authorities that are trusted in place of those of the system.
    pub ca: Option<PathBuf>,
    /// One's own certificate, and its key.
    pub own: Option<(PathBuf, PathBuf)>,
}

impl TlsFiles {
    /// Takes `?ca=FILE&cert=FILE&key=FILE` off the end of an address: what is before it, and the files. Each may be
    /// left out, `cert` and `key` only together. Nothing of the address is repeated in an error, since it may hold a
    /// password.
    ///
    /// # Errors
    /// Anything else behind the question mark.
    ///
    /// ```
    /// use mainstay_store::address::TlsFiles;
    ///
    /// let (servers, files) = TlsFiles::split("tls://h:1,h:2?ca=/etc/my%20ca.pem").unwrap();
    /// assert_eq!(servers, "tls://h:1,h:2");
    /// assert_eq!(files.ca.unwrap().to_str(), Some("/etc/my ca.pem"));
    /// assert!(TlsFiles::split("tls://h:1?cert=c.pem").is_err());
    /// ```
    pub fn split(address: &str) -> Result<(&str, Self), ConfigError> {
        let Some((servers, query)) = address.split_once('?') else { return Ok((address, Self::default())) };
        let refused =
            || ConfigError::new("url", "***", "behind ? only ca, cert and key, a key with its cert");
        let (mut ca, mut cert, mut key) = (None, None, None);
        for part in query.split('&') {
            let (name, file) =
                part.split_once('=').filter(|(_, file)| !file.is_empty()).ok_or_else(refused)?;
            let place = match name {
                "ca" => &mut ca,
                "cert" => &mut cert,
                "key" => &mut key,
                _ => return Err(refused()),
            };
            if place.replace(PathBuf::from(plain(file))).is_some() {
                return Err(refused());
            }
        }
        let own = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(refused()),
        };
        Ok((servers, Self { ca, own }))
    }

    /// Refuses a file that cannot be read.
    ///
    /// # Errors
    /// The first such file, and why.
    pub fn check(&self) -> Result<(), ConfigError> {
        for file in self.ca.iter().chain(self.own.iter().flat_map(|(cert, key)| [cert, key])) {
            if let Err(e) = std::fs::File::open(file) {
                let allowed = format!("a file that can be read: {e}");
                return Err(ConfigError::new("tls", file.display(), allowed));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_as_they_were_meant() {
        for (text, is) in
            [("app", "app"), ("p%40ss%3A", "p@ss:"), ("100%", "100%"), ("%4", "%4"), ("%zz", "%zz")]
        {
            assert_eq!(plain(text), is);
        }
    }

    #[test]
    fn what_is_behind_the_servers_is_files_or_refused() {
        let (servers, files) = TlsFiles::split("s://h?key=k&ca=a&cert=c").unwrap();
        assert_eq!((servers, files.own), ("s://h", Some(("c".into(), "k".into()))));
        assert_eq!(TlsFiles::split("s://h").unwrap().1, TlsFiles::default());
        for bad in ["?", "?ca=", "?ca=a&ca=b", "?key=k", "?x=y", "?ca"] {
            let refused = TlsFiles::split(&format!("s://me:secret@h{bad}")).unwrap_err();
            assert!(!refused.to_string().contains("secret"), "{refused}");
        }
        let missing = TlsFiles { ca: Some("/no/such/file".into()), own: None };
        assert_eq!(missing.check().unwrap_err().field(), "tls");
    }
}
