//! Certificates for servers and clients of a test.

use std::{fmt, io};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Somebody who signs certificates, known to nobody but whoever is given its own.
///
/// ```
/// use mainstay_sim::servers::Authority;
///
/// let authority = Authority::new().unwrap();
/// let (certificate, key) = authority.sign("127.0.0.1").unwrap();
/// assert!(certificate.contains("BEGIN CERTIFICATE") && key.contains("PRIVATE KEY"));
/// assert_ne!(authority.pem(), Authority::new().unwrap().pem());
/// ```
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("pem", &self.pem).finish_non_exhaustive()
    }
}

impl Authority {
    /// With a key of its own.
    ///
    /// # Errors
    /// No key can be made.
    pub fn new() -> io::Result<Self> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let mut params = CertificateParams::new(Vec::new()).map_err(io::Error::other)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).map_err(io::Error::other)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// Its own certificate, in PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for this name or address, and its key, in PEM.
    ///
    /// # Errors
    /// The name is none.
    pub fn sign(&self, name: &str) -> io::Result<(String, String)> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(io::Error::other)?;
        params.distinguished_name.push(DnType::CommonName, name);
        let signed = params.signed_by(&key, &self.issuer).map_err(io::Error::other)?;
        Ok((signed.pem(), key.serialize_pem()))
    }
}
