//! The two calls of the textbook, with its holes closed.

use mainstay_store::ReplicatedStore;

use super::{CallError, Router, SessionToken};

/// `write` and `read` that take a token and give the next one: the simplest way in.
///
/// The textbook keeps the token in a cache: a crash between the write and the cache loses it, a miss reads as "any
/// version", and concurrent writes put it back. Here it is the result of each call, and the caller carries it.
///
/// ```
/// use std::sync::Arc;
/// use mainstay_clock::SystemClock;
/// use mainstay_consistency::session::{Router, SessionConsistency, SessionToken};
/// use mainstay_store::memory::{MemoryCluster, MemoryNode};
/// use mainstay_store::Error;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let clock = Arc::new(SystemClock::new());
/// let cluster = MemoryCluster::new(clock.clone(), "orders", 1);
/// let router = Router::builder("orders", clock).shared("a", cluster.node(0)?).shared("b", cluster.node(1)?).build()?;
/// let sessions = SessionConsistency::new(router);
///
/// let (_, token) =
///     sessions.write(&SessionToken::new(), async |node: &mut MemoryNode| node.write("k", b"v").await).await?;
/// let read = async |node: &mut MemoryNode| Ok::<_, Error>(node.read("k").value);
/// let (value, token) = sessions.read(&token, read).await?;
/// assert_eq!(value.as_deref(), Some(&b"v"[..]));
/// assert!(!token.positions().is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SessionConsistency<C>(Router<C>);

impl<C> Clone for SessionConsistency<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<C: ReplicatedStore + 'static> SessionConsistency<C> {
    /// Over this router.
    #[must_use]
    pub fn new(router: Router<C>) -> Self {
        Self(router)
    }

    /// Writes after what `token` says, and gives the token that contains the write.
    ///
    /// # Errors
    /// As for [`Session::write`](super::Session::write).
    ///
    /// # Cancel safety
    /// As for [`Session::write`](super::Session::write); the caller then has no token of the write and should read
    /// from the primary.
    pub async fn write<T, E, F>(
        &self,
        token: &SessionToken,
        f: F,
    ) -> std::result::Result<(T, SessionToken), CallError<E>>
    where
        F: AsyncFnOnce(&mut C) -> std::result::Result<T, E>,
    {
        let mut session = self.0.session().resume(token)?;
        let out = session.write(f).await?;
        Ok((out, session.token().await?))
    }

    /// Reads at or after what `token` says, and gives the token that contains what was read.
    ///
    /// # Errors
    /// As for [`Session::read`](super::Session::read).
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn read<T, E, F>(
        &self,
        token: &SessionToken,
        f: F,
    ) -> std::result::Result<(T, SessionToken), CallError<E>>
    where
        F: AsyncFnOnce(&mut C) -> std::result::Result<T, E>,
    {
        let mut session = self.0.session().resume(token)?.eager();
        let out = session.read(f).await?;
        Ok((out, session.token().await?))
    }
}
