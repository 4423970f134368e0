//! The driver's client by a URL, encrypted for `rediss://`.

use std::sync::Arc;

use mainstay_store::ConfigError;
use mainstay_store::address::TlsFiles;
use redis::{Client, ClientTlsConfig, RedisError, TlsCertificates};
use rustls::crypto::{CryptoProvider, ring};

/// A client for `redis://HOST:PORT`, or for `rediss://HOST:PORT?ca=FILE&cert=FILE&key=FILE`, each file of which may be
/// left out, `cert` and `key` only together. The server must show a certificate for its name or address.
///
/// Nothing of the URL is repeated in an error: it may hold a password.
pub(crate) fn client(url: &str) -> Result<Client, ConfigError> {
    let refused = |e: RedisError| {
        ConfigError::new("url", "(not shown)", format!("redis://host:port or rediss://host:port, not {e}"))
    };
    if !url.starts_with("rediss://") {
        return Client::open(url).map_err(refused);
    }
    let (server, files) = TlsFiles::split(url)?;
    if server.contains('#') {
        let allowed = "rediss:// without #: a server whose certificate is not checked can be anybody";
        return Err(ConfigError::new("url", "(not shown)", allowed));
    }
    files.check()?;
    let read = |file: &std::path::Path| {
        let allowed = |e| ConfigError::new("tls", file.display(), format!("a file that can be read: {e}"));
        std::fs::read(file).map_err(allowed)
    };
    let client_tls = match &files.own {
        Some((cert, key)) => Some(ClientTlsConfig { client_cert: read(cert)?, client_key: read(key)? }),
        None => None,
    };
    let root_cert = files.ca.as_deref().map(read).transpose()?;
    // The driver takes the provider of the process, and panics where several are compiled in and none was chosen.
    if CryptoProvider::get_default().is_none() {
        // Another thread may have chosen in between.
        let _ = ring::default_provider().install_default();
    }
    Client::build_with_tls(server, TlsCertificates { client_tls, root_cert }).map_err(|e| {
        ConfigError::new("tls", "(not shown)", format!("files of PEM certificates and a key, not {e}"))
    })
}

/// Whether two sides of TLS do not trust each other: asking again changes nothing.
pub(crate) fn is_distrust(error: &(dyn std::error::Error + 'static)) -> bool {
    // The driver keeps an error behind a counter, which hides what it is.
    if let Some(shared) = error.downcast_ref::<Arc<dyn std::error::Error + Send + Sync>>() {
        return is_distrust(&**shared);
    }
    if let Some(inner) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        return is_distrust(inner);
    }
    match error.downcast_ref::<rustls::Error>() {
        Some(said) => matches!(said, rustls::Error::InvalidCertificate(_) | rustls::Error::AlertReceived(_)),
        None => error.source().is_some_and(is_distrust),
    }
}

#[cfg(test)]
mod tests {
    use super::client;

    #[test]
    fn what_cannot_hold_is_refused_and_no_secret_is_told() {
        for (bad, field) in [
            ("redis://:s3cret@h:99999", "url"),
            ("rediss://:s3cret@h/?protocol=resp3", "url"),
            ("rediss://:s3cret@h/?key=k", "url"),
            ("rediss://:s3cret@h/#insecure", "url"),
            ("rediss://:s3cret@h/?ca=/no/such/file", "tls"),
        ] {
            let error = client(bad).unwrap_err();
            assert_eq!(error.field(), field, "{bad}: {error}");
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
        assert!(client("rediss://:s3cret@h:6380/2").is_ok());
    }
}
