//! Tokens in the metadata of calls and messages (feature `tokens`): gRPC, queues, logs of events.
//!
//! Whatever carries names and values carries a token. Who sends writes it with [`Session::attach`]; who receives goes on
//! from it with [`Session::resume_from`], or joins what a reply brought with [`Session::take_from`].
//!
//! *gRPC*: metadata is a map of headers on the wire, and [`SessionLayer`](super::carrier::SessionLayer) serves such calls as
//! it serves others. A caller takes the token from the metadata of the reply *and* from its trailers, also when the call
//! failed: a call may fail after its write. A `MetadataMap` of tonic gives its headers by `into_headers`.
//!
//! *Messages*: a worker that receives one goes on from the token of its producer, and waits for a replica as long as every
//! reader does, then asks the primary.
//!
//! A message without a token claims nothing. One whose token cannot be read means the primary, never "any version"; so do
//! several tokens of which one cannot be read.
//!
//! ```
//! # use std::{sync::Arc, time::Duration};
//! # use mainstay_clock::SystemClock;
//! # use mainstay_consistency::session::{Router, TokenKeys};
//! # use mainstay_store::memory::{MemoryCluster, MemoryNode};
//! # use mainstay_store::Error;
//! use std::collections::BTreeMap;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! # let clock = Arc::new(SystemClock::new());
//! # let cluster = MemoryCluster::new(clock.clone(), "orders", 1);
//! # cluster.set_lag(1, Duration::from_secs(3600))?;
//! # let router = Router::builder("orders", clock)
//! #     .shared("a", cluster.node(0)?)
//! #     .shared("b", cluster.node(1)?)
//! #     .max_wait(Duration::from_millis(1))
//! #     .build()?;
//! # router.poll_once().await;
//! let keys = TokenKeys::builder("orders").key(1, [7; 32]).build()?;
//! let mut headers: BTreeMap<String, String> = BTreeMap::new();
//!
//! // The producer writes, and sends a message about it.
//! let mut session = router.session();
//! session.write(async |node: &mut MemoryNode| node.write("k", b"v").await).await?;
//! session.attach(&mut headers, &keys).await?;
//!
//! // The worker finds what the message is about, although the replica is an hour behind.
//! let mut worker = router.session().resume_from(&headers, &keys);
//! let read = worker.read(async |node: &mut MemoryNode| Ok::<_, Error>(node.read("k").value)).await?;
//! assert_eq!(read.as_deref(), Some(&b"v"[..]));
//! # Ok::<(), Box<dyn std::error::Error>>(()) })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::{BTreeMap, HashMap};

use mainstay_store::ReplicatedStore;

use super::{Session, TokenKeys};
use crate::error::Result;

/// The name under which tokens travel. In lower case, as HTTP/2 and gRPC want it.
pub const NAME: &str = "mainstay-session";

/// Names and values beside a call or message. Implement it for the headers of your client: those of Kafka and NATS are lists
/// and maps of this kind.
pub trait Headers {
    /// Calls `f` with every value of `name`, as bytes: what is no text is no token either, and must not be left out.
    fn each(&self, name: &str, f: &mut dyn FnMut(&[u8]));

    /// Sets `name` to `value`, in place of every former value.
    fn set(&mut self, name: &str, value: &str);
}

impl<V: AsRef<[u8]> + for<'a> From<&'a str>> Headers for BTreeMap<String, V> {
    fn each(&self, name: &str, f: &mut dyn FnMut(&[u8])) {
        if let Some(value) = self.get(name) {
            f(value.as_ref());
        }
    }

    fn set(&mut self, name: &str, value: &str) {
        self.insert(name.to_owned(), V::from(value));
    }
}

impl<V: AsRef<[u8]> + for<'a> From<&'a str>, S: std::hash::BuildHasher> Headers for HashMap<String, V, S> {
    fn each(&self, name: &str, f: &mut dyn FnMut(&[u8])) {
        if let Some(value) = self.get(name) {
            f(value.as_ref());
        }
    }

    fn set(&mut self, name: &str, value: &str) {
        self.insert(name.to_owned(), V::from(value));
    }
}

/// Names may come several times, as in Kafka.
impl<V: AsRef<[u8]> + for<'a> From<&'a str>> Headers for Vec<(String, V)> {
    fn each(&self, name: &str, f: &mut dyn FnMut(&[u8])) {
        self.iter().filter(|header| header.0 == name).for_each(|header| f(header.1.as_ref()));
    }

    fn set(&mut self, name: &str, value: &str) {
        self.retain(|header| header.0 != name);
        self.push((name.to_owned(), V::from(value)));
    }
}

/// Headers of HTTP, metadata and trailers of gRPC. A value that a header cannot hold is not set.
#[cfg(feature = "tower")]
impl Headers for http::HeaderMap {
    fn each(&self, name: &str, f: &mut dyn FnMut(&[u8])) {
        self.get_all(name).iter().for_each(|value| f(value.as_bytes()));
    }

    fn set(&mut self, name: &str, value: &str) {
        let pair = (http::HeaderName::try_from(name), http::HeaderValue::try_from(value));
        if let (Ok(name), Ok(value)) = pair {
            self.insert(name, value);
        }
    }
}

impl<C: ReplicatedStore + 'static> Session<C> {
    /// Goes on from the token in `headers`, if there is one. What cannot be read makes every read of this session one of
    /// the primary, and is told to the router's listener.
    #[must_use]
    pub fn resume_from(mut self, headers: &impl Headers, keys: &TokenKeys) -> Self {
        self.take_from(headers, keys);
        self
    }

    /// Joins the tokens in `headers` into this session: what a call brought back, in metadata or trailers. What cannot be
    /// read counts as in [`resume_from`](Self::resume_from).
    pub fn take_from(&mut self, headers: &impl Headers, keys: &TokenKeys) {
        // Bytes that are no text are said as an empty one, which does not open.
        headers
            .each(NAME, &mut |value| self.take_sealed(std::str::from_utf8(value).unwrap_or_default(), keys));
    }

    /// Writes what this session must find again into `headers`, for whoever receives them.
    ///
    /// # Errors
    /// As for [`Session::token`]; the headers are as they were.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the headers as they were.
    pub async fn attach(&mut self, headers: &mut impl Headers, keys: &TokenKeys) -> Result<()> {
        let token = self.token().await?;
        headers.set(NAME, &keys.seal(&token, self.now()));
        Ok(())
    }
}
