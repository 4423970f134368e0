//! TLS of the node itself: certificate and key from files, read again when they change.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

use crate::error::{Code, Error, Result};
use crate::http::stamp::{Stamp, stamp};

/// Largest certificate or key file.
const MAX_FILE: u64 = 1024 * 1024;

/// The certificate in force. Looked at with every handshake: connections that are open keep theirs, and files
/// that do not fit together (half written, or one of the two replaced) leave the old one in force.
pub(crate) struct Certs {
    cert: PathBuf,
    key: PathBuf,
    state: Mutex<State>,
}

struct State {
    current: Arc<CertifiedKey>,
    /// Of the files that were read last, with success or not.
    seen: [Option<Stamp>; 2],
}

impl Certs {
    fn open(cert: &Path, key: &Path) -> Result<Self> {
        let seen = [stamp(cert), stamp(key)];
        let current = Arc::new(load(cert, key)?);
        Ok(Self { cert: cert.to_owned(), key: key.to_owned(), state: Mutex::new(State { current, seen }) })
    }

    fn current(&self) -> Arc<CertifiedKey> {
        let mut state = self.state.lock().expect("invariant: no panic under this lock");
        let now = [stamp(&self.cert), stamp(&self.key)];
        if now != state.seen {
            state.seen = now;
            match load(&self.cert, &self.key) {
                Ok(fresh) => {
                    tracing::info!(file = %self.cert.display(), "a new certificate is in force");
                    state.current = Arc::new(fresh);
                }
                Err(error) => {
                    tracing::warn!(error = error.chain(), "the old certificate stays in force");
                }
            }
        }
        Arc::clone(&state.current)
    }
}

impl ResolvesServerCert for Certs {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl fmt::Debug for Certs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certs").field("cert", &self.cert).finish_non_exhaustive()
    }
}

fn load(cert: &Path, key: &Path) -> Result<CertifiedKey> {
    let read = |file: &Path| {
        let unreadable = |e| Error::with(Code::TlsFiles, format!("cannot read {}", file.display()), e);
        if std::fs::metadata(file).map_err(unreadable)?.len() > MAX_FILE {
            return Err(Error::new(Code::TlsFiles, format!("{} is larger than 1 MiB", file.display())));
        }
        std::fs::read(file).map_err(unreadable)
    };
    let bad = |file: &Path, what: &str| Error::new(Code::TlsFiles, format!("{}: {what}", file.display()));
    let chain: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(cert)?).collect();
    let chain = chain.map_err(|_| bad(cert, "no PEM certificates"))?;
    if chain.is_empty() {
        return Err(bad(cert, "no certificate"));
    }
    // The parser's own text is not repeated: it may quote the key.
    let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| bad(key, "no PEM private key"))?;
    CertifiedKey::from_der(chain, secret, &default_provider())
        .map_err(|e| bad(cert, &format!("does not fit {}: {e}", key.display())))
}

/// An acceptor over these files: HTTP/1.1 on TLS 1.2 or 1.3.
///
/// # Errors
/// When the files cannot be read or do not fit together.
pub(crate) fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor> {
    let certs = Arc::new(Certs::open(cert, key)?);
    let internal = |e| Error::with(Code::Internal, "no TLS", e);
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(internal)?;
    let mut config = config.with_no_client_auth().with_cert_resolver(certs);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let files = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        std::fs::write(&files.0, made.cert.pem()).unwrap();
        std::fs::write(&files.1, made.signing_key.serialize_pem()).unwrap();
        files
    }

    #[test]
    fn sec_05_files_that_do_not_fit_are_refused_at_start_and_change_nothing_later() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (pair(dir.path(), "a"), pair(dir.path(), "b"));
        assert_eq!(Certs::open(&a.0, &b.1).unwrap_err().code(), Code::TlsFiles);
        assert_eq!(Certs::open(&a.1, &a.1).unwrap_err().code(), Code::TlsFiles);
        assert_eq!(Certs::open(&dir.path().join("none"), &a.1).unwrap_err().code(), Code::TlsFiles);
        let certs = Certs::open(&a.0, &a.1).unwrap();
        let first = certs.current();
        let swap = |from: &Path, to: &Path| {
            // By rename, as tools do it.
            std::fs::copy(from, to.with_extension("new")).unwrap();
            std::fs::rename(to.with_extension("new"), to).unwrap();
        };
        // Only the certificate is there so far: the old pair stays in force.
        swap(&b.0, &a.0);
        assert_eq!(certs.current().cert, first.cert);
        std::fs::write(&a.1, "-----BEGIN PRIVATE KEY-----\nhalf").unwrap();
        assert_eq!(certs.current().cert, first.cert);
        swap(&b.1, &a.1);
        assert_ne!(certs.current().cert, first.cert, "the new pair is in force");
    }
}
