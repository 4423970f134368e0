//! Calls to participants over HTTP, only to origins that the operator allowed.
//!
//! The allow-list is the whole policy: without an entry no address is called, so a definition cannot make
//! this node reach into its network. No proxy of the environment is used and no redirect is followed; a
//! redirect to another origin is an answer that the reply table does not take.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE, LOCATION};
use mainstay_clock::{Clock, Instant};
use mainstay_saga::definition::{Call, Definition, Undo};
use mainstay_saga::participant::{Attempt, Kind, Participant, Reply, Request};
use mainstay_store::BoxFuture;
use reqwest::Url;

use crate::error::{Code, Error, Result};

/// Longest connect: within it nothing was sent, which is worth knowing for certain.
const CONNECT: Duration = Duration::from_secs(5);
/// Idle connections kept per participant.
const IDLE: usize = 64;

/// The HTTP participant of a node.
pub(crate) struct Participants {
    client: reqwest::Client,
    allowed: Vec<String>,
    max_reply: usize,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Participants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Participants").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

impl Participants {
    /// A client for these origins.
    ///
    /// # Errors
    /// When an origin is not `http://HOST[:PORT]` or `https://HOST[:PORT]`.
    pub(crate) fn new(allowed: &[String], max_reply: usize, clock: Arc<dyn Clock>) -> Result<Self> {
        let mut origins = Vec::new();
        for text in allowed {
            let url = Url::parse(text).ok().filter(|u| u.path() == "/" && u.query().is_none());
            let origin = url.as_ref().and_then(origin_of).ok_or_else(|| {
                Error::new(Code::BadValue, format!("participants.allow: `{text}` is not an origin"))
            })?;
            origins.push(origin);
        }
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .pool_max_idle_per_host(IDLE)
            .build()
            .map_err(|e| Error::with(Code::Internal, "no HTTP client", e))?;
        Ok(Self { client, allowed: origins, max_reply, clock })
    }

    fn allows(&self, url: &Url) -> bool {
        origin_of(url).is_some_and(|o| self.allowed.contains(&o))
    }

    /// Every address of a definition that may not be called.
    pub(crate) fn forbidden(&self, definition: &Definition) -> Vec<String> {
        let mut found = Vec::new();
        for step in definition.steps() {
            let undo = match &step.undo {
                Undo::Call(Call::Http(url)) => Some(url),
                _ => None,
            };
            let action = match &step.action {
                Call::Http(url) => Some(url),
                Call::Local => None,
            };
            for url in [action, undo, step.status.as_ref()].into_iter().flatten() {
                if !Url::parse(url).is_ok_and(|u| self.allows(&u)) {
                    found.push(format!("step `{}`: the origin of {url} is not allowed", step.name));
                }
            }
        }
        found
    }

    async fn exchange(&self, request: Request) -> Reply {
        // A question that was not sent says nothing about the action that it asks after.
        let not_sent = match request.kind {
            Kind::Act => Reply::NotSent,
            Kind::Poll | Kind::Status => Reply::Unknown,
        };
        let Some(url) = Url::parse(&request.url).ok().filter(|u| self.allows(u)) else {
            return not_sent("the origin is not allowed (participants.allow)".to_owned());
        };
        let answer = match self.build(url.clone(), request).send().await {
            Ok(answer) => answer,
            Err(e) if e.is_connect() || e.is_builder() => return not_sent(plain(&e)),
            Err(e) => return Reply::Unknown(plain(&e)),
        };
        let (status, mut headers) = (answer.status().as_u16(), answer.headers().clone());
        let place = headers.get(LOCATION).and_then(|l| url.join(l.to_str().ok()?).ok());
        if let Some(place) = place.and_then(|p| p.as_str().parse().ok()) {
            headers.insert(LOCATION, place);
        }
        match self.body(answer).await {
            Ok(body) => Reply::Answered(Attempt { status, headers, body }),
            Err(why) => Reply::Unknown(why),
        }
    }

    fn build(&self, url: Url, request: Request) -> reqwest::RequestBuilder {
        let mut call = match request.kind {
            Kind::Act => self.client.post(url).header(CONTENT_TYPE, "application/json").body(request.body),
            Kind::Poll | Kind::Status => self.client.get(url),
        };
        call = call
            .header(ACCEPT, "application/json")
            .header("idempotency-key", format!("\"{}\"", request.idempotency_key))
            .header("saga-id", request.saga)
            .header("saga-step", request.step)
            .header("saga-op", request.op.text())
            .header("saga-attempt", request.attempt.to_string())
            .header("fencing-token", request.fencing_token.to_string());
        if let Some(at) = request.deadline_wall {
            call = call.header("saga-deadline", crate::api::instant(at));
        }
        if let Some(trace) = request.traceparent {
            call = call.header("traceparent", trace);
        }
        call
    }

    /// The body within its limit; what is longer is cut off, not read.
    async fn body(&self, mut answer: reqwest::Response) -> std::result::Result<Vec<u8>, String> {
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|e| plain(&e))? {
            if body.len() + chunk.len() > self.max_reply {
                return Err(format!("the reply has more than {} bytes", self.max_reply));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

impl Participant for Participants {
    fn call(&self, request: Request, deadline: Instant) -> BoxFuture<'_, Reply> {
        Box::pin(async move {
            let late = self.clock.sleep_until(deadline);
            tokio::select! {
                biased;
                reply = self.exchange(request) => reply,
                () = late => Reply::Unknown("no complete reply in time".to_owned()),
            }
        })
    }
}

/// `scheme://host:port`, with the port always there.
fn origin_of(url: &Url) -> Option<String> {
    let fine =
        matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none();
    let port = url.port_or_known_default()?;
    fine.then(|| format!("{}://{}:{port}", url.scheme(), url.host_str().unwrap_or_default()))
}

/// The error with its causes and without the URL, which may carry secrets.
fn plain(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() { "timeout" } else { "the exchange failed" }.to_owned();
    let mut next = std::error::Error::source(error);
    while let Some(e) = next {
        text.push_str(": ");
        text.push_str(&e.to_string());
        next = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn participants(allowed: &[&str]) -> Result<Participants> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let allowed: Vec<String> = allowed.iter().map(|a| (*a).to_owned()).collect();
        Participants::new(&allowed, 1024, Arc::new(mainstay_clock::SystemClock::new()))
    }

    #[test]
    fn if_a09_sec_13_only_allowed_origins_pass() {
        let some = participants(&["http://127.0.0.1:8080", "https://pay.example"]).unwrap();
        let ok = |text: &str| Url::parse(text).is_ok_and(|u| some.allows(&u));
        assert!(
            ok("http://127.0.0.1:8080/x") && ok("https://pay.example:443/y") && ok("https://PAY.example/y")
        );
        for bad in [
            "http://127.0.0.1:8081/x",
            "https://127.0.0.1:8080/x",
            "http://169.254.169.254/latest/meta-data",
            "https://pay.example.evil.example/",
            "https://pay.example@evil.example/",
            "https://user@pay.example/",
            "file:///etc/passwd",
            "http://pay.example/",
        ] {
            assert!(!ok(bad), "{bad}");
        }
        assert!(!participants(&[]).unwrap().allows(&Url::parse("https://example.com/").unwrap()));
        for bad in ["127.0.0.1:1", "http://h/path", "ftp://h", "http://u:p@h"] {
            assert!(participants(&[bad]).is_err(), "{bad}");
        }
    }
}
