//! Refused settings, and what a server's refusal means.

use mainstay_store::{Error, ErrorKind, Outcome};
use serde::Deserialize;

/// An error as the server writes it. The numbers are those of its list of errors.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Refusal {
    #[serde(default)]
    pub(crate) code: u16,
    #[serde(default)]
    pub(crate) err_code: u32,
    #[serde(default)]
    pub(crate) description: String,
}

impl Refusal {
    /// The subject's last sequence is another than expected. The second form has no number in its text and comes
    /// from clusters.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self.err_code, 10_071 | 10_164)
    }

    pub(crate) fn is_no_stream(&self) -> bool {
        self.err_code == 10_059
    }

    pub(crate) fn is_no_message(&self) -> bool {
        self.err_code == 10_037
    }

    /// A server that is no part of a cluster keeps no copies.
    pub(crate) fn is_not_clustered(&self) -> bool {
        self.err_code == 10_074
    }

    /// Somebody else made the stream meanwhile, with another first sequence; or a cluster that just came up does
    /// not know all its servers yet, or has no leader.
    pub(crate) fn is_for_now(&self) -> bool {
        matches!(self.err_code, 10_005 | 10_008 | 10_058)
    }

    fn kind(&self) -> (ErrorKind, &'static str) {
        match (self.err_code, self.code) {
            (10_039 | 10_035, _) => (ErrorKind::Unsupported, "JetStream is not enabled for this account"),
            (10_076, _) => (ErrorKind::Unsupported, "JetStream is not enabled"),
            (10_005, _) => {
                (ErrorKind::Unavailable, "too few servers are up to keep the copies of the bucket")
            }
            (10_077 | 10_023 | 10_047 | 10_028, _) => {
                (ErrorKind::Full, "the space that the bucket may use is used")
            }
            (10_054, _) => (ErrorKind::TooLarge, "the entry is larger than the bucket allows"),
            (10_166, _) => (ErrorKind::Unsupported, "the bucket does not let messages end by themselves"),
            (_, 408 | 429 | 500..) => (ErrorKind::Unavailable, "the server cannot do that now"),
            _ => (ErrorKind::Internal, "the server refused a request"),
        }
    }

    /// As an error of the store. What a server says because it fails is no proof that nothing happened.
    pub(crate) fn error(&self) -> Error {
        let (kind, text) = self.kind();
        let outcome = if self.code >= 500 { Outcome::Unknown } else { Outcome::NotApplied };
        Error::new(kind, format!("nats: {text}: {} ({})", self.description, self.err_code))
            .with_outcome(outcome)
    }
}

/// A request that may have reached the server.
pub(crate) fn unanswered(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("nats did not answer in time: {what}"))
        .with_outcome(Outcome::Unknown)
}

/// A request that nobody was there to take.
pub(crate) fn nobody(what: &str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("nats: nobody serves {what}: no JetStream, no bucket, or no leader of it"),
    )
}

/// A reply that no version of the server gives.
pub(crate) fn garbled(what: &str, reply: &[u8]) -> Error {
    let shown = String::from_utf8_lossy(&reply[..reply.len().min(200)]).into_owned();
    Error::new(ErrorKind::Internal, format!("nats answered {what} with what cannot be read: {shown}"))
        .with_outcome(Outcome::Unknown)
}
