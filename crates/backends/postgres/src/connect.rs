//! How connections are made.

use std::fmt;
use std::pin::Pin;

use futures_util::stream::{self, Stream};
use mainstay_store::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{AsyncMessage, Client, Config, Connection, Error, Socket};

pub(crate) type Messages = Pin<Box<dyn Stream<Item = Result<AsyncMessage, Error>> + Send>>;

/// Makes connections. Implement it for what [`Dial`] cannot do: a stream that a simulator or a tunnel made.
pub trait Connector: Send + Sync + fmt::Debug {
    /// Makes one. A server that cannot take writes is of no use here.
    ///
    /// # Errors
    /// When none of the servers answers.
    ///
    /// # Cancel safety
    /// A dropped future leaves no connection.
    fn connect(&self) -> BoxFuture<'_, Result<Connected, Error>>;
}

/// A connection that was made: the half that asks and the half that drives it.
pub struct Connected {
    pub(crate) client: Client,
    pub(crate) messages: Messages,
}

impl Connected {
    /// From what the driver's `connect` or `connect_raw` gave.
    #[must_use]
    pub fn new<S, T>(client: Client, mut connection: Connection<S, T>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let messages = Box::pin(stream::poll_fn(move |cx| connection.poll_message(cx)));
        Self { client, messages }
    }
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connected").finish_non_exhaustive()
    }
}

/// The driver's own way: a configuration and what encrypts.
#[derive(Clone)]
pub struct Dial<T> {
    config: Config,
    tls: T,
}

impl<T> Dial<T> {
    /// With this configuration, as it is, and this TLS.
    #[must_use]
    pub fn new(config: Config, tls: T) -> Self {
        Self { config, tls }
    }
}

impl<T> fmt::Debug for Dial<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It hides its password itself.
        f.debug_tuple("Dial").field(&self.config).finish()
    }
}

impl<T> Connector for Dial<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::Stream: Send + 'static,
    T::TlsConnect: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    fn connect(&self) -> BoxFuture<'_, Result<Connected, Error>> {
        Box::pin(async move {
            let (client, connection) = self.config.connect(self.tls.clone()).await?;
            Ok(Connected::new(client, connection))
        })
    }
}
