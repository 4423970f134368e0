//! One connection, with the login that its address names.

use std::io;

use async_nats::{Client, ConnectErrorKind, ConnectOptions, ServerAddr, rustls};
use mainstay_store::address::{TlsFiles, plain};
use mainstay_store::{Error, ErrorKind, Result};

/// The driver does not read it off the address. A name without a password is a token.
fn login(options: ConnectOptions, servers: &[ServerAddr]) -> ConnectOptions {
    let named = servers.iter().find_map(|s| Some((s.username()?, s.password())));
    match named {
        Some((user, Some(password))) => options.user_and_password(plain(user), plain(password)),
        Some((token, None)) => options.token(plain(token)),
        None => options,
    }
}

/// With the files of TLS.
fn secured(options: ConnectOptions, tls: &TlsFiles) -> ConnectOptions {
    let options = match &tls.ca {
        Some(ca) => options.add_root_certificates(ca.clone()),
        None => options,
    };
    match &tls.own {
        Some((cert, key)) => options.add_client_certificate(cert.clone(), key.clone()),
        None => options,
    }
}

/// Whether one side does not trust the other: asking again changes nothing.
fn is_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if inner.is_some_and(|e| e.is::<rustls::Error>()) || error.is::<rustls::Error>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// Connects to the first of `servers` that lets us in.
///
/// # Errors
/// [`ErrorKind::Unsupported`] when the login or a certificate is wrong, else [`ErrorKind::Unavailable`].
pub(crate) async fn connect(
    options: ConnectOptions,
    servers: &[ServerAddr],
    tls: &TlsFiles,
) -> Result<Client> {
    secured(login(options, servers), tls).connect(servers).await.map_err(|e| {
        let (kind, text) = match e.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                (ErrorKind::Unsupported, "nats does not know the user, password or token")
            }
            ConnectErrorKind::Tls => (ErrorKind::Unsupported, "nats: the files of TLS cannot be used"),
            _ if is_refused(&e) => (ErrorKind::Unsupported, "nats: a certificate is not trusted"),
            _ => (ErrorKind::Unavailable, "nats cannot be reached"),
        };
        Error::new(kind, text).with_source(e)
    })
}
