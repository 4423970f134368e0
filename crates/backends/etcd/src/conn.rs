//! The members of one cluster: one of them is asked, the next one when it fails.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream;
use mainstay_clock::Runtime;
use mainstay_store::address::TlsFiles;
use mainstay_store::{Error, ErrorKind, Outcome, Result};
use tokio::sync::watch;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Response, Status, Streaming};

use crate::ConfigError;
use crate::config::{EtcdConfig, Login};
use crate::error::{Failure, Refusal, failure, late};
use crate::wire::{
    AuthClient, AuthenticateRequest, KvClient, LeaseClient, LeaseGrantRequest, LeaseKeepAliveRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, MaintenanceClient, ResponseHeader, StatusRequest, TxnRequest,
    TxnResponse, WatchClient, WatchRequest, WatchResponse,
};

/// A silent member is given this part of the whole time when there are others.
const PARTS: u32 = 3;
/// etcd closes connections that are probed more often than each five seconds.
const PROBE: Duration = Duration::from_secs(6);
/// How long the answer to a probe may take.
const PROBE_PATIENCE: Duration = Duration::from_secs(3);
/// Between two tries: from this, doubling.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));
/// etcd 3.4 lets clients number their watches.
const OLDEST: (u32, u32) = (3, 4);

/// Whether a request may be sent again when nobody knows what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It changes nothing, or the same thing once.
    Harmless,
    /// The second answer would mean something else.
    Never,
}

/// An answer, and whether an earlier try of the same request may have been applied too.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    pub(crate) reply: T,
    pub(crate) in_doubt: bool,
}

/// One connection per member, made when it is first needed and again after it broke.
pub(crate) struct Conn {
    members: Vec<(String, Channel)>,
    login: Option<Login>,
    /// What stands for the login, since it was shown.
    token: Mutex<Option<Token>>,
    current: watch::Sender<usize>,
    /// The largest revision seen: none of this cluster is ever smaller.
    seen: AtomicI64,
    cluster: AtomicU64,
    request_timeout: Duration,
    pub(crate) rt: Runtime,
}

/// What stands for a login, in every request.
type Token = MetadataValue<Ascii>;

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn").field("asked", &self.endpoint()).finish_non_exhaustive()
    }
}

impl Conn {
    pub(crate) fn new(config: &EtcdConfig, rt: &Runtime) -> std::result::Result<Self, ConfigError> {
        let connect = (config.request_timeout / PARTS).max(Duration::from_millis(20));
        let tls = match config.endpoints.iter().any(|uri| uri.starts_with("https://")) {
            true => Some(tls(&config.tls)?),
            false => None,
        };
        let member = |uri: &String| {
            let refused = |e| ConfigError::new("url", uri, format!("an address: {e}"));
            let mut endpoint = Endpoint::from_shared(uri.clone()).map_err(refused)?;
            if let Some(tls) = &tls {
                let refused = |e| ConfigError::new("tls", uri, format!("files of TLS: {e}"));
                endpoint = endpoint.tls_config(tls.clone()).map_err(refused)?;
            }
            let endpoint = endpoint
                .connect_timeout(connect)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(PROBE)
                .keep_alive_timeout(PROBE_PATIENCE)
                .keep_alive_while_idle(false);
            let name = uri.split_once("://").map_or(uri.as_str(), |(_, name)| name);
            Ok((name.to_owned(), endpoint.connect_lazy()))
        };
        Ok(Self {
            members: config.endpoints.iter().map(member).collect::<std::result::Result<_, _>>()?,
            login: config.login.clone(),
            token: Mutex::default(),
            current: watch::Sender::new(0),
            seen: AtomicI64::new(0),
            cluster: AtomicU64::new(0),
            request_timeout: config.request_timeout,
            rt: rt.clone(),
        })
    }

    /// The member that is asked now.
    pub(crate) fn endpoint(&self) -> &str {
        &self.members[*self.current.borrow()].0
    }

    /// Tells when another member is asked from now on.
    pub(crate) fn moves(&self) -> watch::Receiver<usize> {
        self.current.subscribe()
    }

    /// Asks another member from now on, unless somebody else has seen to that.
    fn move_on(&self, from: usize) {
        let next = (from + 1) % self.members.len();
        self.current.send_if_modified(|at| {
            let moves = *at == from && next != from;
            if moves {
                *at = next;
            }
            moves
        });
    }

    async fn call<T, F>(
        &self,
        repeat: Repeat,
        ask: impl Fn(Channel, Option<Token>) -> F,
    ) -> std::result::Result<Answer<T>, Failure>
    where
        F: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        let clock = self.rt.clock();
        let end = clock.now().saturating_add(self.request_timeout);
        let slice = match self.members.len() {
            1 => self.request_timeout,
            _ => self.request_timeout / PARTS,
        };
        let (mut in_doubt, mut pause) = (false, PAUSE.0);
        loop {
            let at = *self.current.borrow();
            let (name, channel) = &self.members[at];
            let over = clock.sleep_until(clock.now().saturating_add(slice).min(end));
            let asked = tokio::select! {
                biased;
                answer = self.under_login(name, channel, &ask) => answer,
                () = over => Err(late(name)),
            };
            let mut failed = match asked {
                Ok(reply) => return Ok(Answer { reply: reply.into_inner(), in_doubt }),
                Err(failed) => failed,
            };
            if !failed.error.is_retryable() || failed.error.kind() == ErrorKind::Full {
                if in_doubt {
                    failed.error = failed.error.with_outcome(Outcome::Unknown);
                }
                return Err(failed);
            }
            self.move_on(at);
            in_doubt |= failed.error.outcome() == Outcome::Unknown;
            if in_doubt {
                failed.error = failed.error.with_outcome(Outcome::Unknown);
            }
            let next = clock.now().saturating_add(pause.mul_f64(0.5 + self.rt.rng().unit() / 2.0));
            if next >= end || (in_doubt && repeat == Repeat::Never) {
                return Err(failed);
            }
            clock.sleep_until(next).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Asks, with what stands for the login; it is shown first, and again once the member does not know it any more.
    async fn under_login<T, F>(
        &self,
        name: &str,
        channel: &Channel,
        ask: &impl Fn(Channel, Option<Token>) -> F,
    ) -> std::result::Result<Response<T>, Failure>
    where
        F: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        let token = self.token(name, channel).await?;
        let answer = ask(channel.clone(), token.clone()).await.map_err(|status| failure(name, status));
        match answer {
            // It was refused before anything was done.
            Err(failed) if failed.refusal == Refusal::TokenGone && token.is_some() => {
                *self.kept_token() = None;
                let token = self.token(name, channel).await?;
                ask(channel.clone(), token).await.map_err(|status| failure(name, status))
            }
            answer => answer,
        }
    }

    fn kept_token(&self) -> MutexGuard<'_, Option<Token>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn token(&self, name: &str, channel: &Channel) -> std::result::Result<Option<Token>, Failure> {
        let Some(Login { user, password }) = &self.login else { return Ok(None) };
        let kept = self.kept_token().clone();
        if kept.is_some() {
            return Ok(kept);
        }
        let request = AuthenticateRequest { name: user.clone(), password: password.clone() };
        let told = AuthClient::new(channel.clone()).authenticate(led(request, None)).await;
        // To show a login changes nothing.
        let told = told.map_err(|status| {
            let failed = failure(name, status);
            Failure { error: failed.error.with_outcome(Outcome::NotApplied), ..failed }
        })?;
        let token = told.into_inner().token.parse::<Token>().map_err(|_| {
            Failure::new(Error::new(ErrorKind::Internal, format!("etcd {name} gave a token that is no text")))
        })?;
        *self.kept_token() = Some(token.clone());
        Ok(Some(token))
    }

    /// Refuses a cluster that is not the one seen before, or that is behind it: it was restored or replaced, and
    /// tokens of before would be told again (coordination F26).
    fn follow(&self, floor: i64, header: Option<&ResponseHeader>) -> Result<()> {
        let Some(header) = header else {
            return Err(Error::new(ErrorKind::Corrupt, "an answer of etcd has no header")
                .with_outcome(Outcome::Unknown));
        };
        let known = self.cluster.compare_exchange(0, header.cluster_id, Ordering::SeqCst, Ordering::SeqCst);
        let other = known.is_err_and(|id| id != header.cluster_id);
        if header.revision < floor || other {
            let text = format!(
                "etcd went back from revision {floor} to {}: it was restored or replaced, and grants nothing; raise the base epoch",
                header.revision
            );
            return Err(Error::new(ErrorKind::Regressed, text).with_outcome(Outcome::Unknown));
        }
        self.seen.fetch_max(header.revision, Ordering::SeqCst);
        Ok(())
    }

    /// A transaction. Its answer comes from a majority.
    pub(crate) async fn txn(
        &self,
        repeat: Repeat,
        txn: TxnRequest,
    ) -> std::result::Result<Answer<TxnResponse>, Failure> {
        let floor = self.seen.load(Ordering::SeqCst);
        let answer = self
            .call(repeat, |channel, token| {
                let txn = txn.clone();
                async move { KvClient::new(channel).txn(led(txn, token)).await }
            })
            .await?;
        self.follow(floor, answer.reply.header.as_ref()).map_err(Failure::new)?;
        Ok(answer)
    }

    /// Makes a lease of this id; how long it lasts, in seconds. Repeating it is harmless: the id is nobody else's.
    pub(crate) async fn grant(&self, lease: i64, seconds: i64) -> Result<i64> {
        let granted = self
            .call(Repeat::Harmless, |channel, token| async move {
                let request = LeaseGrantRequest { ttl: seconds, id: lease };
                LeaseClient::new(channel).lease_grant(led(request, token)).await
            })
            .await;
        match granted {
            Ok(answer) => Ok(answer.reply.ttl),
            Err(failed) if failed.refusal == Refusal::LeaseExists => Ok(seconds),
            Err(failed) => Err(failed.error),
        }
    }

    /// Ends a lease with all its keys; whether it was there.
    pub(crate) async fn revoke(&self, lease: i64) -> Result<bool> {
        let revoked = self
            .call(Repeat::Harmless, |channel, token| async move {
                LeaseClient::new(channel).lease_revoke(led(LeaseRevokeRequest { id: lease }, token)).await
            })
            .await;
        match revoked {
            Ok(_) => Ok(true),
            Err(failed) if failed.refusal == Refusal::LeaseGone => Ok(false),
            Err(failed) => Err(failed.error),
        }
    }

    /// Lets a lease last its whole time from now; whether it is there. A stream of its own, so that the answer is
    /// the one to this request (coordination T9).
    pub(crate) async fn keep_alive(&self, lease: i64) -> Result<bool> {
        let kept = self
            .call(Repeat::Harmless, |channel, token| async move {
                let once = stream::iter([LeaseKeepAliveRequest { id: lease }]);
                let mut replies =
                    LeaseClient::new(channel).lease_keep_alive(led(once, token)).await?.into_inner();
                let reply = replies.message().await?;
                reply.map(Response::new).ok_or_else(|| Status::unavailable("no word about the lease"))
            })
            .await;
        match kept {
            Ok(answer) => Ok(answer.reply.ttl > 0),
            Err(failed) if failed.refusal == Refusal::LeaseGone => Ok(false),
            Err(failed) => Err(failed.error.with_outcome(Outcome::Unknown)),
        }
    }

    /// How long a lease still lasts, at most; none when it is not there.
    pub(crate) async fn remaining(&self, lease: i64) -> Result<Option<Duration>> {
        let told = self
            .call(Repeat::Harmless, |channel, token| async move {
                let request = LeaseTimeToLiveRequest { id: lease, keys: false };
                LeaseClient::new(channel).lease_time_to_live(led(request, token)).await
            })
            .await;
        let told = told.map_err(|failed| failed.error.with_outcome(Outcome::NotApplied))?.reply;
        // It is told in whole seconds, the started one left out.
        let left = u64::try_from(told.ttl.saturating_add(1).min(told.granted_ttl)).ok();
        Ok(left.filter(|_| told.ttl >= 0).map(Duration::from_secs))
    }

    /// The version of the member that is asked, as it says.
    pub(crate) async fn version(&self) -> Result<String> {
        let told = self
            .call(Repeat::Harmless, |channel, token| async move {
                MaintenanceClient::new(channel).status(led(StatusRequest {}, token)).await
            })
            .await
            .map_err(|failed| failed.error.with_outcome(Outcome::NotApplied))?
            .reply;
        Ok(told.version)
    }

    /// Connects, and looks whether the server will do.
    pub(crate) async fn ready(&self) -> Result<()> {
        let told = self.version().await?;
        if version(&told).is_none_or(|v| v < OLDEST) {
            let text = format!(
                "etcd {} is version {}; leases need 3.4 or later",
                self.endpoint(),
                if told.is_empty() { "unknown" } else { &told }
            );
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        // Whether it has a majority, and from where its revisions go on. Without any operation nobody is asked.
        let look = TxnRequest { success: vec![crate::wire::get(vec![0])], ..TxnRequest::default() };
        let looked = self.txn(Repeat::Harmless, look).await;
        looked.map(drop).map_err(|failed| failed.error.with_outcome(Outcome::NotApplied))
    }

    /// Opens the stream of watches; its first request must be among `requests` already.
    pub(crate) async fn watch(
        &self,
        requests: impl futures_util::Stream<Item = WatchRequest> + Send + 'static,
    ) -> Result<Streaming<WatchResponse>> {
        let at = *self.current.borrow();
        let (name, channel) = &self.members[at];
        let late_at = self.rt.clock().sleep(self.request_timeout);
        let opened = async {
            let token = self.token(name, channel).await?;
            let opened = WatchClient::new(channel.clone()).watch(led(requests, token)).await;
            opened.map_err(|status| failure(name, status))
        };
        let opened = tokio::select! {
            biased;
            opened = opened => opened,
            () = late_at => Err(late(name)),
        };
        match opened {
            Ok(stream) => Ok(stream.into_inner()),
            Err(failed) => {
                if failed.refusal == Refusal::TokenGone {
                    *self.kept_token() = None;
                }
                self.move_on(at);
                Err(failed.error)
            }
        }
    }
}

/// A member that has lost its leader says so instead of keeping us waiting.
fn led<T>(message: T, token: Option<Token>) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    if let Some(token) = token {
        request.metadata_mut().insert("token", token);
    }
    request
}

/// Whom we trust and who we are.
fn tls(files: &TlsFiles) -> std::result::Result<ClientTlsConfig, ConfigError> {
    let read = |file: &std::path::Path| {
        let refused = |e| ConfigError::new("tls", file.display(), format!("a file that can be read: {e}"));
        std::fs::read(file).map_err(refused)
    };
    let config = match &files.ca {
        Some(ca) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    Ok(match &files.own {
        Some((cert, key)) => config.identity(Identity::from_pem(read(cert)?, read(key)?)),
        None => config,
    })
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::{OLDEST, version};

    #[test]
    fn f14_versions() {
        for (text, good) in
            [("3.4.23", true), ("3.6.0-rc.1", true), ("4.0.0", true), ("3.3.27", false), ("", false)]
        {
            assert_eq!(version(text).is_some_and(|v| v >= OLDEST), good, "{text}");
        }
    }
}
