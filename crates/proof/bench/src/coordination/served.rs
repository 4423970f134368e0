//! Locks of `mainstay serve`, over HTTP by hand: what a client costs is not what is measured.

use anyhow::{Context as _, bail, ensure};
use mainstay_clock::{Clock as _, Instant, SystemClock};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::saga::http::{Message, Wire};

/// A client with one connection.
pub(super) struct Client {
    wire: Wire,
    address: String,
}

impl Client {
    pub(super) async fn connect(address: &str) -> anyhow::Result<Self> {
        Ok(Self { wire: Wire::new(TcpStream::connect(address).await?)?, address: address.to_owned() })
    }

    async fn send(&mut self, what: &str, headers: &str, body: &str) -> anyhow::Result<()> {
        let address = &self.address;
        let length = body.len();
        let text =
            format!("{what} HTTP/1.1\r\nhost: {address}\r\n{headers}content-length: {length}\r\n\r\n{body}");
        Ok(self.wire.stream.write_all(text.as_bytes()).await?)
    }

    async fn answer(&mut self) -> anyhow::Result<Message> {
        let answer = self.wire.read().await?.context("the server hung up")?;
        ensure!(
            answer.head.starts_with("HTTP/1.1 200"),
            "{}",
            answer.head.lines().next().unwrap_or_default()
        );
        Ok(answer)
    }

    async fn wanted(&mut self, lock: &str, query: &str, owner: &str) -> anyhow::Result<()> {
        let body = format!("{{\"owner\":\"{owner}\",\"ttl\":\"1h\"}}");
        let what = format!("PUT /v1/locks/{lock}?{query}");
        self.send(&what, "content-type: application/json\r\n", &body).await
    }

    /// Waits in line; the token.
    pub(super) async fn acquire(&mut self, lock: &str, owner: &str) -> anyhow::Result<String> {
        self.wanted(lock, "wait=50s", owner).await?;
        tag(&self.answer().await?)
    }

    pub(super) async fn release(&mut self, lock: &str, token: &str) -> anyhow::Result<()> {
        self.send(&format!("DELETE /v1/locks/{lock}"), &format!("if-match: {token}\r\n"), "").await?;
        self.answer().await.map(drop)
    }

    pub(super) async fn renew(&mut self, lock: &str, token: &str) -> anyhow::Result<()> {
        self.send(&format!("PATCH /v1/locks/{lock}"), &format!("if-match: {token}\r\n"), "").await?;
        self.answer().await.map(drop)
    }

    /// How many wait.
    pub(super) async fn waiting(&mut self, lock: &str) -> anyhow::Result<u64> {
        self.send(&format!("GET /v1/locks/{lock}"), "", "").await?;
        let shown: serde_json::Value = serde_json::from_slice(&self.answer().await?.body)?;
        shown["waiting"].as_u64().context("no `waiting`")
    }

    /// Takes a lock for as long as this connection is open; when it was asked for.
    pub(super) async fn bind(&mut self, lock: &str, owner: &str) -> anyhow::Result<Instant> {
        let at = SystemClock::new().now();
        self.wanted(lock, "bind=connection", owner).await?;
        // The answer has no end: its first part says that the lock is held.
        let mut text = Vec::new();
        while !String::from_utf8_lossy(&text).contains("event: held") {
            self.wire.stream.readable().await?;
            match self.wire.stream.try_read_buf(&mut text) {
                Ok(0) => bail!("not held: {}", String::from_utf8_lossy(&text)),
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(at)
    }

    /// The token of whoever holds it.
    pub(super) async fn token(&mut self, lock: &str) -> anyhow::Result<String> {
        self.send(&format!("GET /v1/locks/{lock}"), "", "").await?;
        tag(&self.answer().await?)
    }
}

fn tag(answer: &Message) -> anyhow::Result<String> {
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("etag").then(|| value.trim().to_owned())
    };
    answer.head.lines().find_map(header).context("no token")
}
