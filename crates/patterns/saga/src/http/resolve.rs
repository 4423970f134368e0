//! From names to addresses that were checked.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mainstay_store::BoxFuture;
use reqwest::dns::{Name, Resolving};

use super::address::AddressPolicy;

/// Most addresses of one name that are tried: more is a mistake or an attack on the connect time.
const MAX_ADDRESSES: usize = 16;

/// Resolves names. Implement it to ask something else than the operating system.
pub trait Resolve: Send + Sync + fmt::Debug {
    /// The addresses of `name`.
    ///
    /// # Errors
    /// When there is no answer.
    ///
    /// # Cancel safety
    /// A dropped call has no effect.
    fn resolve(&self, name: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The resolver of the operating system.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, name: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let name = name.to_owned();
        Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.map(|a| a.ip()).collect()) })
    }
}

/// Hands on only addresses that the policy admits, so that the connector cannot dial another.
pub(super) struct Checked {
    pub(super) policy: Arc<AddressPolicy>,
    pub(super) inner: Arc<dyn Resolve>,
}

impl reqwest::dns::Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = Arc::clone(&self.policy);
        let answer = self.inner.resolve(name.as_str());
        Box::pin(async move {
            let mut refused = None;
            let mut fine = Vec::new();
            for address in answer.await?.into_iter().take(MAX_ADDRESSES) {
                match policy.admits(name.as_str(), address) {
                    // The port of the URL takes the place of the zero.
                    Ok(()) => fine.push(SocketAddr::new(address, 0)),
                    Err(refusal) => refused = Some(refusal),
                }
            }
            match refused {
                Some(refusal) if fine.is_empty() => Err(refusal.into()),
                _ => Ok(Box::new(fine.into_iter()) as reqwest::dns::Addrs),
            }
        })
    }
}
