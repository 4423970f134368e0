//! TLS by a URL: libpq's names, and always the check that libpq calls `verify-full`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mainstay_store::ConfigError;
use mainstay_store::address::{TlsFiles, plain};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres::NoTls;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::patient;
use crate::connect::{Connector, Dial};

/// What connects to the servers of `url`, once `check` has agreed to them and set what it wants.
///
/// Nothing of the URL is repeated in an error: it may hold a password.
pub(crate) fn connector(
    url: &str,
    check: impl FnOnce(&mut tokio_postgres::Config) -> Result<(), ConfigError>,
) -> Result<Arc<dyn Connector>, ConfigError> {
    let (text, files) = split(url)?;
    let refused = |e: tokio_postgres::Error| {
        ConfigError::new("url", "***", format!("a PostgreSQL URL or key=value text: {e}"))
    };
    let mut config: tokio_postgres::Config = text.parse().map_err(refused)?;
    check(&mut config)?;
    patient(&mut config);
    if config.get_ssl_mode() == SslMode::Require {
        return Ok(Arc::new(Dial::new(config, MakeRustlsConnect::new(client(&files)?))));
    }
    if files != TlsFiles::default() {
        let allowed = "sslrootcert, sslcert and sslkey with sslmode=require, verify-ca or verify-full only";
        return Err(ConfigError::new("url", "***", allowed));
    }
    Ok(Arc::new(Dial::new(config, NoTls)))
}

/// Takes the files off a URL, and turns libpq's two words for a checked server into the driver's one.
fn split(url: &str) -> Result<(String, TlsFiles), ConfigError> {
    let is_url = url.starts_with("postgres://") || url.starts_with("postgresql://");
    let Some((before, query)) = url.split_once('?').filter(|_| is_url) else {
        return Ok((url.to_owned(), TlsFiles::default()));
    };
    let (mut ca, mut cert, mut key, mut rest) = (None, None, None, Vec::new());
    for part in query.split('&') {
        let place = match part.split_once('=') {
            Some(("sslrootcert", file)) => Some((&mut ca, file)),
            Some(("sslcert", file)) => Some((&mut cert, file)),
            Some(("sslkey", file)) => Some((&mut key, file)),
            Some(("sslmode", "verify-ca" | "verify-full")) => {
                rest.push("sslmode=require");
                None
            }
            _ => {
                rest.push(part);
                None
            }
        };
        if let Some((place, file)) = place
            && (file.is_empty() || place.replace(PathBuf::from(plain(file))).is_some())
        {
            return Err(ConfigError::new("url", "***", "one file each for sslrootcert, sslcert and sslkey"));
        }
    }
    let own = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        _ => return Err(ConfigError::new("url", "***", "sslcert and sslkey together")),
    };
    let text = if rest.is_empty() { before.to_owned() } else { format!("{before}?{}", rest.join("&")) };
    Ok((text, TlsFiles { ca, own }))
}

fn client(files: &TlsFiles) -> Result<ClientConfig, ConfigError> {
    let refused = |file: &Path, why: String| ConfigError::new("tls", file.display(), why);
    let certificates = |file: &Path| -> Result<Vec<CertificateDer<'static>>, ConfigError> {
        let list: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
        let list = list.map_err(|e| refused(file, format!("a file of PEM certificates: {e}")))?;
        if list.is_empty() {
            return Err(refused(file, "a file with at least one PEM certificate".to_owned()));
        }
        Ok(list)
    };
    let mut roots = RootCertStore::empty();
    match &files.ca {
        Some(file) => {
            for certificate in certificates(file)? {
                roots
                    .add(certificate)
                    .map_err(|e| refused(file, format!("certificates of authorities: {e}")))?;
            }
        }
        // What cannot be read there is not trusted, and a server that needs it is refused.
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| ConfigError::new("tls", "***", format!("a provider of TLS 1.2 or 1.3: {e}")))?
        .with_root_certificates(roots);
    match &files.own {
        Some((cert, key)) => {
            let secret = PrivateKeyDer::from_pem_file(key)
                .map_err(|e| refused(key, format!("a file with a PEM private key: {e}")))?;
            builder
                .with_client_auth_cert(certificates(cert)?, secret)
                .map_err(|e| refused(cert, format!("a certificate and the key that belongs to it: {e}")))
        }
        None => Ok(builder.with_no_client_auth()),
    }
}

/// Whether two sides of TLS do not trust each other: asking again changes nothing.
pub(crate) fn is_distrust(error: &(dyn std::error::Error + 'static)) -> bool {
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
    use super::*;

    #[test]
    fn files_are_taken_off_and_the_rest_stays() {
        let (text, files) =
            split("postgres://u:p@h/d?sslmode=verify-full&connect_timeout=3&sslrootcert=/a%20b.pem").unwrap();
        assert_eq!(text, "postgres://u:p@h/d?sslmode=require&connect_timeout=3");
        assert_eq!(files, TlsFiles { ca: Some("/a b.pem".into()), own: None });
        let (text, files) = split("postgresql://h/d?sslcert=c&sslkey=k").unwrap();
        assert_eq!((text.as_str(), files.own), ("postgresql://h/d", Some(("c".into(), "k".into()))));
        assert_eq!(split("host=h sslmode=require").unwrap().0, "host=h sslmode=require");
    }

    #[test]
    fn what_cannot_hold_is_refused_and_no_secret_is_told() {
        for bad in [
            "?sslcert=c",
            "?sslrootcert=",
            "?sslrootcert=a&sslrootcert=b",
            "?sslrootcert=a",
            "?sslmode=require&sslrootcert=/no/such/file",
            "?sslmode=disable&sslcert=c&sslkey=k",
            "?sslmode=allow",
        ] {
            let error = connector(&format!("postgres://me:s3cret@h/d{bad}"), |_| Ok(())).unwrap_err();
            assert!(matches!(error.field(), "url" | "tls"), "{bad}: {error}");
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }
}
