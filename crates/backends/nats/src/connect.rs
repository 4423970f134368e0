//! One connection, with the login that its address names.

use async_nats::{Client, ConnectErrorKind, ConnectOptions, ServerAddr};
use mainstay_store::{Error, ErrorKind, Result};

/// A text of an URL with its `%XX` read.
fn plain(text: &str) -> String {
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

/// The driver does not read it off the address. A name without a password is a token.
fn login(options: ConnectOptions, servers: &[ServerAddr]) -> ConnectOptions {
    let named = servers.iter().find_map(|s| Some((s.username()?, s.password())));
    match named {
        Some((user, Some(password))) => options.user_and_password(plain(user), plain(password)),
        Some((token, None)) => options.token(plain(token)),
        None => options,
    }
}

/// Connects to the first of `servers` that lets us in.
///
/// # Errors
/// [`ErrorKind::Unsupported`] when the login is wrong, else [`ErrorKind::Unavailable`].
pub(crate) async fn connect(options: ConnectOptions, servers: &[ServerAddr]) -> Result<Client> {
    login(options, servers).connect(servers).await.map_err(|e| {
        let kind = match e.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                ErrorKind::Unsupported
            }
            _ => ErrorKind::Unavailable,
        };
        Error::new(kind, "nats cannot be reached").with_source(e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_read_as_they_were_meant() {
        for (text, is) in
            [("app", "app"), ("p%40ss%3A", "p@ss:"), ("100%", "100%"), ("%4", "%4"), ("%zz", "%zz")]
        {
            assert_eq!(plain(text), is);
        }
    }
}
