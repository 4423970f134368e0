//! From the transport's errors to the store's.

use mainstay_store::{Error, ErrorKind, Outcome};
use tonic::{Code, ConnectError, Status};

/// Answers that are no failure of the cluster, and that callers tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The lease is there already.
    LeaseExists,
    /// The lease is not there.
    LeaseGone,
    /// Anything else.
    Other,
    /// The word that stands for the login is not known any more.
    TokenGone,
}

/// A request that led to nothing.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) refusal: Refusal,
}

impl Failure {
    pub(crate) fn new(error: Error) -> Self {
        Self { error, refusal: Refusal::Other }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

/// What `status` means, said by the member at `endpoint`.
pub(crate) fn failure(endpoint: &str, status: Status) -> Failure {
    let refusal = match (status.code(), status.message()) {
        (Code::NotFound, text) if text.contains("lease not found") => Refusal::LeaseGone,
        (Code::FailedPrecondition, text) if text.contains("lease already exists") => Refusal::LeaseExists,
        (_, text) if text.contains("invalid auth token") || text.contains("revision in header is old") => {
            Refusal::TokenGone
        }
        _ => Refusal::Other,
    };
    let (kind, outcome, text) = classify(&status);
    let text = match status.message() {
        "" => format!("etcd {endpoint} {text}"),
        said => format!("etcd {endpoint} {text}: {said}"),
    };
    Failure { error: Error::new(kind, text).with_outcome(outcome).with_source(status), refusal }
}

fn classify(status: &Status) -> (ErrorKind, Outcome, &'static str) {
    use Outcome::{NotApplied, Unknown};
    let said = |part: &str| status.message().contains(part);
    match status.code() {
        _ if not_trusted(status) => {
            (ErrorKind::Unsupported, NotApplied, "and we do not trust each other's certificate")
        }
        _ if never_connected(status) => (ErrorKind::Unavailable, NotApplied, "cannot be reached"),
        Code::Unavailable if said("no leader") || said("not capable") => {
            (ErrorKind::Unavailable, NotApplied, "has no leader")
        }
        Code::ResourceExhausted if said("space exceeded") => (ErrorKind::Full, NotApplied, "is full"),
        Code::ResourceExhausted if said("too many requests") => {
            (ErrorKind::Unavailable, NotApplied, "takes no more requests")
        }
        Code::ResourceExhausted => (ErrorKind::TooLarge, NotApplied, "refused a large request"),
        Code::InvalidArgument if said("too many operations") || said("too large") => {
            (ErrorKind::TooLarge, NotApplied, "refused a large request")
        }
        Code::PermissionDenied | Code::Unauthenticated => {
            (ErrorKind::Unsupported, NotApplied, "does not let us do that")
        }
        Code::InvalidArgument if said("user name is empty") => {
            (ErrorKind::Unsupported, NotApplied, "wants a user: etcd://USER:PASSWORD@HOST")
        }
        Code::InvalidArgument if said("authentication failed") => {
            (ErrorKind::Unsupported, NotApplied, "does not know the user or the password")
        }
        Code::FailedPrecondition if said("authentication is not enabled") => {
            (ErrorKind::Unsupported, NotApplied, "has no users: leave them out of the address")
        }
        Code::Unimplemented => (ErrorKind::Unsupported, NotApplied, "is no etcd, or one that is too old"),
        Code::DataLoss => (ErrorKind::Corrupt, Unknown, "reports damaged data"),
        Code::NotFound | Code::FailedPrecondition | Code::InvalidArgument | Code::OutOfRange => {
            (ErrorKind::Internal, NotApplied, "refused a request")
        }
        // Leader changed, timed out, the connection broke: it may have been applied, now or later.
        _ => (ErrorKind::Unavailable, Unknown, "did not answer"),
    }
}

/// Whether one side does not trust the other: asking again changes nothing.
fn not_trusted(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        // The crate of TLS is the transport's own business; what it says begins like this.
        if inner.is_some_and(|e| e.to_string().starts_with("invalid peer certificate")) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Whether the request never left this process.
fn never_connected(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Nobody answered in time.
pub(crate) fn late(endpoint: &str) -> Failure {
    let text = format!("etcd {endpoint} did not answer in time");
    Failure::new(Error::new(ErrorKind::Unavailable, text).with_outcome(Outcome::Unknown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_status_means() {
        use Outcome::{NotApplied, Unknown};
        let cases = [
            (Code::Unavailable, "etcdserver: no leader", ErrorKind::Unavailable, NotApplied),
            (Code::Unavailable, "etcdserver: leader changed", ErrorKind::Unavailable, Unknown),
            (Code::Unavailable, "etcdserver: request timed out", ErrorKind::Unavailable, Unknown),
            (Code::Unavailable, "transport is closing", ErrorKind::Unavailable, Unknown),
            (Code::Cancelled, "", ErrorKind::Unavailable, Unknown),
            (Code::Unknown, "h2 protocol error", ErrorKind::Unavailable, Unknown),
            (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
                ErrorKind::Full,
                NotApplied,
            ),
            (Code::ResourceExhausted, "etcdserver: too many requests", ErrorKind::Unavailable, NotApplied),
            (
                Code::InvalidArgument,
                "etcdserver: too many operations in txn request",
                ErrorKind::TooLarge,
                NotApplied,
            ),
            (Code::InvalidArgument, "etcdserver: user name is empty", ErrorKind::Unsupported, NotApplied),
            (Code::PermissionDenied, "etcdserver: permission denied", ErrorKind::Unsupported, NotApplied),
            (Code::Unimplemented, "", ErrorKind::Unsupported, NotApplied),
            (Code::DataLoss, "", ErrorKind::Corrupt, Unknown),
        ];
        for (code, text, kind, outcome) in cases {
            let found = failure("a", Status::new(code, text));
            assert_eq!((found.error.kind(), found.error.outcome()), (kind, outcome), "{code:?} {text}");
            assert_eq!(found.refusal, Refusal::Other);
        }
        let gone = Status::new(Code::NotFound, "etcdserver: requested lease not found");
        assert_eq!(failure("a", gone).refusal, Refusal::LeaseGone);
        let twice = Status::new(Code::FailedPrecondition, "etcdserver: lease already exists");
        assert_eq!(failure("a", twice).refusal, Refusal::LeaseExists);
    }
}
