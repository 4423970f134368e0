//! TLS of the node itself: certificate, key and the authority of clients from files, read again when they change.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use webpki::EndEntityCert;

use crate::error::{Code, Error, Result};
use crate::http::stamp::{Stamp, stamp};

/// Largest certificate or key file.
const MAX_FILE: u64 = 1024 * 1024;
/// Longest name of a client: DNS names have at most 253 bytes, and URIs of services are seldom longer.
const MAX_NAME: usize = 512;

/// The files that TLS is made of.
#[derive(Clone, Debug)]
pub(crate) struct TlsFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    /// Whose certificates clients must present; none: they present nothing.
    pub(crate) client_ca: Option<PathBuf>,
}

impl TlsFiles {
    fn stamps(&self) -> [Option<Stamp>; 3] {
        let ca = self.client_ca.as_deref().and_then(stamp);
        [stamp(&self.cert), stamp(&self.key), ca]
    }
}

/// The TLS in force. Looked at with every connection: those that are open keep theirs, and files that do not fit
/// (half written, or one of several replaced) leave the old ones in force.
pub(crate) struct Tls {
    files: TlsFiles,
    state: Mutex<State>,
}

struct State {
    current: Arc<ServerConfig>,
    /// Of the files that were read last, with success or not.
    seen: [Option<Stamp>; 3],
}

impl Tls {
    /// TLS over these files: HTTP/1.1 on TLS 1.2 or 1.3.
    ///
    /// # Errors
    /// When the files cannot be read or do not fit together.
    pub(crate) fn open(files: TlsFiles) -> Result<Self> {
        let seen = files.stamps();
        let current = Arc::new(load(&files)?);
        Ok(Self { files, state: Mutex::new(State { current, seen }) })
    }

    /// What accepts the next connection.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current())
    }

    fn current(&self) -> Arc<ServerConfig> {
        let mut state = self.state.lock().expect("invariant: no panic under this lock");
        let now = self.files.stamps();
        if now != state.seen {
            state.seen = now;
            match load(&self.files) {
                Ok(fresh) => {
                    tracing::info!(file = %self.files.cert.display(), "a new certificate is in force");
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

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

fn load(files: &TlsFiles) -> Result<ServerConfig> {
    let internal = |e| Error::with(Code::Internal, "no TLS", e);
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(internal)?;
    let own = Arc::new(SingleCertAndKey::from(own(&files.cert, &files.key)?));
    let mut config = match &files.client_ca {
        None => config.with_no_client_auth().with_cert_resolver(own),
        Some(ca) => {
            let roots = Arc::new(authority(ca)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::new(default_provider()));
            let verifier = verifier.build().map_err(|e| bad(ca, &e.to_string()))?;
            let mut config = config.with_client_cert_verifier(verifier).with_cert_resolver(own);
            // A resumed session would skip the check of a certificate that expired or lost its authority since.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            config
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let unreadable = |e| Error::with(Code::TlsFiles, format!("cannot read {}", file.display()), e);
    if std::fs::metadata(file).map_err(unreadable)?.len() > MAX_FILE {
        return Err(bad(file, "larger than 1 MiB"));
    }
    std::fs::read(file).map_err(unreadable)
}

fn bad(file: &Path, what: &str) -> Error {
    Error::new(Code::TlsFiles, format!("{}: {what}", file.display()))
}

/// The certificates of a file, at least one.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let list: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(file)?).collect();
    let list = list.map_err(|_| bad(file, "no PEM certificates"))?;
    if list.is_empty() {
        return Err(bad(file, "no certificate"));
    }
    Ok(list)
}

fn own(cert: &Path, key: &Path) -> Result<CertifiedKey> {
    let chain = certificates(cert)?;
    // The parser's own text is not repeated: it may quote the key.
    let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| bad(key, "no PEM private key"))?;
    CertifiedKey::from_der(chain, secret, &default_provider())
        .map_err(|e| bad(cert, &format!("does not fit {}: {e}", key.display())))
}

/// All or nothing: an authority that is half there would let half of the clients in.
fn authority(file: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for cert in certificates(file)? {
        roots.add(cert).map_err(|e| bad(file, &e.to_string()))?;
    }
    Ok(roots)
}

/// The name of a client by its certificate, which was verified before: its first URI among the alternative names,
/// as `uri:..`, else its first DNS name, as `dns:..`. The common name is not looked at: it is text without a type
/// (RFC 9525, 2).
pub(crate) fn name_of(certificate: &CertificateDer<'_>) -> Option<Arc<str>> {
    let parsed = EndEntityCert::try_from(certificate).ok()?;
    let uri = parsed.valid_uri_names().next().map(|name| format!("uri:{name}"));
    let name = uri.or_else(|| parsed.valid_dns_names().next().map(|name| format!("dns:{name}")))?;
    // It stands in the audit and on pages: nothing that ends a line, and no book.
    let legal = name.len() <= MAX_NAME && name.bytes().all(|b| b.is_ascii_graphic());
    legal.then(|| name.into())
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
        let open = |cert: &Path, key: &Path, ca: Option<&Path>| {
            let client_ca = ca.map(Path::to_owned);
            Tls::open(TlsFiles { cert: cert.to_owned(), key: key.to_owned(), client_ca })
        };
        let none = dir.path().join("none");
        let refused = [
            open(&a.0, &b.1, None),
            open(&a.1, &a.1, None),
            open(&none, &a.1, None),
            open(&a.0, &a.1, Some(&none)),
            open(&a.0, &a.1, Some(&a.1)),
        ];
        for refused in refused {
            assert_eq!(refused.unwrap_err().code(), Code::TlsFiles);
        }
        let tls = open(&a.0, &a.1, None).unwrap();
        let first = tls.current();
        let same = || Arc::ptr_eq(&tls.current(), &first);
        let swap = |from: &Path, to: &Path| {
            // By rename, as tools do it.
            std::fs::copy(from, to.with_extension("new")).unwrap();
            std::fs::rename(to.with_extension("new"), to).unwrap();
        };
        // Only the certificate is there so far: the old pair stays in force.
        swap(&b.0, &a.0);
        assert!(same());
        std::fs::write(&a.1, "-----BEGIN PRIVATE KEY-----\nhalf").unwrap();
        assert!(same());
        swap(&b.1, &a.1);
        assert!(!same(), "the new pair is in force");
    }

    #[test]
    fn sec_05_a_client_is_named_by_its_alternative_names_and_by_nothing_else() {
        let certified = |change: &dyn Fn(&mut rcgen::CertificateParams)| {
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(rcgen::DnType::CommonName, "admin");
            change(&mut params);
            let key = rcgen::KeyPair::generate().unwrap();
            name_of(params.self_signed(&key).unwrap().der())
        };
        let dns = |name: &str| rcgen::SanType::DnsName(name.try_into().unwrap());
        let uri = |name: &str| rcgen::SanType::URI(name.try_into().unwrap());
        assert_eq!(certified(&|_| {}), None, "a common name is no name");
        let found = certified(&|p| p.subject_alt_names = vec![dns("a.example"), dns("b.example")]);
        assert_eq!(found.as_deref(), Some("dns:a.example"));
        let found = certified(&|p| p.subject_alt_names = vec![dns("a.example"), uri("spiffe://x/ops")]);
        assert_eq!(found.as_deref(), Some("uri:spiffe://x/ops"), "the URI wins");
        for odd in ["spiffe://x/a b", "spiffe://x/\n", &format!("spiffe://x/{}", "y".repeat(600))] {
            assert_eq!(certified(&|p| p.subject_alt_names = vec![uri(odd)]), None, "{odd}");
        }
        assert_eq!(name_of(&CertificateDer::from(vec![0x30, 0x80])), None);
    }
}
